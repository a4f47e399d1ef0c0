package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// registryDir lives in /run so that a reboot, which undoes every change, also forgets them.
const registryDir = "/run/imagegen-testcluster"

// kubeletSysctls are what a kubelet sets on the whole machine; nothing in its configuration stops it.
var kubeletSysctls = []string{
	"/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom", "/proc/sys/kernel/panic",
	"/proc/sys/kernel/panic_on_oops", "/proc/sys/kernel/keys/root_maxkeys", "/proc/sys/kernel/keys/root_maxbytes",
}

// fixedDirs are folders that components make at places of their own choosing, whatever their flags say.
var fixedDirs = []string{
	"/var/lib/kubelet/device-plugins", "/var/lib/kubelet", "/var/log/containers", "/var/lib/cni/results", "/var/lib/cni",
	"/run/containerd/s", "/run/containerd", "/run/netns", "/opt/containerd/bin", "/opt/containerd/lib", "/opt/containerd",
}

// registry is what all clusters of this machine share: who has which slot, and what to put back when the last one ends.
type registry struct {
	Clusters map[string]string `json:"clusters"` // slot → folder
	Sysctls  map[string]string `json:"sysctls"`  // path → value before the first cluster
	Existed  []string          `json:"existed"`  // those of fixedDirs that were there before
}

// withRegistry runs change on the registry under a lock that other commands wait for, and saves the result.
func withRegistry(change func(*registry) error) error {
	lock, err := lockRegistry()
	if err != nil {
		return err
	}
	defer lock.Close()
	file := filepath.Join(registryDir, "registry.json")
	r := registry{Clusters: map[string]string{}}
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := change(&r); err != nil {
		return err
	}
	if len(r.Clusters) == 0 {
		return errors.Join(os.Remove(lock.Name()), ignoreMissing(os.Remove(file)), ignoreMissing(os.Remove(registryDir)))
	}
	text, err = json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// lockRegistry waits for the lock. The last release removes the lock's file, so one that was waited for may be gone by then.
func lockRegistry() (*os.File, error) {
	name := filepath.Join(registryDir, "lock")
	for {
		if err := os.MkdirAll(registryDir, 0o755); err != nil {
			return nil, err
		}
		lock, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
			lock.Close()
			return nil, err
		}
		held, err := lock.Stat()
		if err != nil {
			lock.Close()
			return nil, err
		}
		if current, err := os.Stat(name); err == nil && os.SameFile(held, current) {
			return lock, nil
		}
		lock.Close()
	}
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTEMPTY) {
		return nil
	}
	return err
}

// claim gives dir the slot it asks for (or the lowest free one, for -1), noting the machine's state before the first.
func claim(dir string, wanted int) (slot int, err error) {
	err = withRegistry(func(r *registry) error {
		for s, owner := range r.Clusters {
			if owner == dir {
				slot, err = strconv.Atoi(s)
				return err
			}
		}
		taken := foreignRanges()
		slot = -1
		for s := range maxSlots {
			if wanted >= 0 && s != wanted {
				continue
			}
			if owner, used := r.Clusters[strconv.Itoa(s)]; used {
				if wanted >= 0 {
					return fmt.Errorf("slot %d belongs to the cluster in %s: choose another --slot or take that one down", s, owner)
				}
				continue
			}
			if clash := overlap(s, taken); clash != "" {
				if wanted >= 0 {
					return fmt.Errorf("slot %d cannot be used: this machine already has a route to %s", s, clash)
				}
				continue
			}
			slot = s
			break
		}
		if slot < 0 {
			return fmt.Errorf("none of the %d slots is free: clusters in %v; take one down with `testcluster down --dir DIR`", maxSlots, r.Clusters)
		}
		if len(r.Clusters) == 0 {
			r.Sysctls = map[string]string{}
			for _, name := range kubeletSysctls {
				if value, err := os.ReadFile(name); err == nil {
					r.Sysctls[name] = strings.TrimSpace(string(value))
				}
			}
			for _, dir := range fixedDirs {
				if _, err := os.Stat(dir); err == nil {
					r.Existed = append(r.Existed, dir)
				}
			}
		}
		r.Clusters[strconv.Itoa(slot)] = dir
		return nil
	})
	return slot, err
}

// release gives a slot back; the last one puts the machine's settings back and removes empty leftovers.
func release(c *Cluster) error {
	return withRegistry(func(r *registry) error {
		if r.Clusters[strconv.Itoa(c.Slot)] != c.Dir {
			return nil
		}
		delete(r.Clusters, strconv.Itoa(c.Slot))
		if len(r.Clusters) > 0 {
			return nil
		}
		var failed error
		for name, value := range r.Sysctls {
			failed = errors.Join(failed, os.WriteFile(name, []byte(value), 0o644))
		}
		for _, dir := range fixedDirs {
			if slices.Contains(r.Existed, dir) {
				continue
			}
			if dir == "/run/netns" {
				// `ip netns add` mounts the folder on itself; somebody else's namespaces in it keep it.
				if entries, _ := os.ReadDir(dir); len(entries) == 0 {
					syscall.Unmount(dir, 0)
					os.Remove(dir)
				}
				continue
			}
			// Sockets and lock files of processes that have ended may lie here; nothing else is removed.
			entries, _ := os.ReadDir(dir)
			for _, entry := range entries {
				if !entry.IsDir() {
					os.Remove(filepath.Join(dir, entry.Name()))
				}
			}
			os.Remove(dir)
		}
		return failed
	})
}

// foreignRanges are the address ranges this machine routes now, other than the default route.
func foreignRanges() []netip.Prefix {
	out, err := exec.Command("ip", "-4", "route", "show", "table", "all").Output()
	if err != nil {
		return nil
	}
	var ranges []netip.Prefix
	for line := range strings.Lines(string(out)) {
		for _, field := range strings.Fields(line) {
			if p, err := netip.ParsePrefix(field); err == nil {
				ranges = append(ranges, p)
				break
			}
		}
	}
	return ranges
}

// overlap names the routed range that a slot's ranges would collide with, if any.
func overlap(slot int, routed []netip.Prefix) string {
	c := Cluster{Slot: slot}
	for _, own := range []string{c.podRange(), c.serviceRange(), c.hostLinkIP() + "/30"} {
		for _, p := range routed {
			if p.Bits() > 0 && p.Overlaps(netip.MustParsePrefix(own)) {
				return p.String()
			}
		}
	}
	return ""
}

// requirements are the commands that Debian packages bring; the message names the packages.
func checkRequirements() error {
	var missing []string
	for _, need := range []string{"ip", "nsenter", "nft", "conntrack", "runc", "mount", "umount"} {
		if _, err := exec.LookPath(need); err != nil {
			missing = append(missing, need)
		}
	}
	for _, plugin := range []string{"bridge", "host-local", "loopback"} {
		if _, err := os.Stat(filepath.Join(cniDir, plugin)); err != nil {
			missing = append(missing, filepath.Join(cniDir, plugin))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not installed: %s. On Debian: apt-get install runc containernetworking-plugins nftables conntrack iproute2 util-linux mount",
			strings.Join(missing, ", "))
	}
	return nil
}
