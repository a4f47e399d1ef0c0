package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// bridge is the name of the bridge inside each cluster's network namespace.
const bridge = "igbr"

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func ip(line string) error { return run("ip", strings.Fields(line)...) }

// addNetwork makes the namespace, its bridge and the link to the machine. The namespace has no default route: pods and
// components reach each other and the machine, nothing beyond it.
func (c *Cluster) addNetwork() error {
	ns, node := c.name(), c.nodeLinkIP()
	steps := []string{
		"netns add " + ns,
		"-n " + ns + " link set lo up",
		"-n " + ns + " link add " + bridge + " type bridge",
		// A fixed address: a bridge otherwise takes its lowest port's, which changes with every pod.
		"-n " + ns + " link set " + bridge + " address 02:00:00:00:0f:01",
		"-n " + ns + " addr add " + c.NodeIP() + "/24 dev " + bridge,
		"-n " + ns + " link set " + bridge + " up",
		"link add " + ns + " type veth peer name uplink netns " + ns,
		"-n " + ns + " addr add " + node + "/30 dev uplink",
		"-n " + ns + " link set uplink up",
		// Service addresses exist only in kube-proxy's rules; they need some route to be looked at by them at all.
		"-n " + ns + " route add " + c.serviceRange() + " dev " + bridge + " src " + c.NodeIP(),
		"addr add " + c.hostLinkIP() + "/30 dev " + ns,
		"link set " + ns + " up",
		"route add " + c.podRange() + " via " + node,
		"route add " + c.serviceRange() + " via " + node,
		// When the link is gone these keep the cluster's addresses from leaving by the default route.
		"route add unreachable " + c.podRange() + " metric 4000",
		"route add unreachable " + c.serviceRange() + " metric 4000",
	}
	for _, step := range steps {
		if err := ip(step); err != nil {
			return err
		}
	}
	// /proc/sys/net shows the namespace of the process that looks.
	return c.inNamespace("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward; "+
		"f=/proc/sys/net/bridge/bridge-nf-call-iptables; [ ! -e $f ] || echo 1 > $f")
}

// bridgedTrafficIsFiltered says whether the kernel shows bridged packets to netfilter. Without that, a pod's answer to
// a pod on the same bridge would miss the undoing of DNAT, and kube-proxy has to masquerade everything.
func bridgedTrafficIsFiltered() bool {
	_, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return err == nil
}

func (c *Cluster) inNamespace(name string, args ...string) error {
	return run("nsenter", append([]string{"--net=" + c.netns(), "--", name}, args...)...)
}

func (c *Cluster) removeNetwork() {
	ip("link del " + c.name())
	ip("netns del " + c.name())
	ip("route del unreachable " + c.podRange() + " metric 4000")
	ip("route del unreachable " + c.serviceRange() + " metric 4000")
}

// addCgroup makes the cgroup under which the kubelet puts its pods, for cgroup v1 in each hierarchy.
func (c *Cluster) addCgroup() error {
	if isCgroupV2() {
		for _, dir := range []string{cgroupMount, filepath.Join(cgroupMount, c.name())} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			for _, controller := range []string{"cpu", "cpuset", "memory", "pids", "io"} {
				// A controller that this machine lacks is the kubelet's to complain about.
				os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
			}
		}
		return nil
	}
	for _, dir := range c.cgroupDirs() {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		// A new cpuset is empty, and nothing can be started in an empty one.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file)); err == nil {
				if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

const cgroupMount = "/sys/fs/cgroup"

func isCgroupV2() bool {
	_, err := os.Stat(filepath.Join(cgroupMount, "cgroup.controllers"))
	return err == nil
}

// cgroupDirs are the cluster's cgroups: one, or with cgroup v1 one for each controller.
func (c *Cluster) cgroupDirs() []string {
	if isCgroupV2() {
		return []string{filepath.Join(cgroupMount, c.name())}
	}
	var dirs []string
	entries, _ := os.ReadDir(cgroupMount)
	for _, entry := range entries {
		if entry.IsDir() {
			dirs = append(dirs, filepath.Join(cgroupMount, entry.Name(), c.name()))
		}
	}
	return dirs
}

func (c *Cluster) removeCgroup() {
	for _, top := range c.cgroupDirs() {
		var dirs []string
		filepath.WalkDir(top, func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			os.Remove(dirs[i])
		}
	}
}
