package harness

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"syscall"
	"time"
)

// Down stops everything of the cluster and undoes what it did to the machine; with wipe its folder goes too.
func (c *Cluster) Down(wipe bool) error {
	if err := RequireRoot(); err != nil {
		return err
	}
	for _, group := range stopOrder {
		c.stop(5*time.Second, group...)
	}
	c.removeContainers()
	c.stop(5*time.Second, "containerd")
	for _, pid := range c.strays() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	until(5*time.Second, func() bool { return len(c.strays()) == 0 })
	stuck := c.unmount()
	c.removeNetwork()
	c.removeCgroup()
	// Every process is gone, and with them what these folders say about them.
	for _, dir := range []string{"run", "containerd/state", "cni/ipam"} {
		os.RemoveAll(c.path(dir))
	}
	if err := release(c); err != nil {
		return fmt.Errorf("put the machine's settings back: %w", err)
	}
	if stuck != nil {
		return stuck
	}
	if wipe {
		if err := os.RemoveAll(c.Dir); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) removeContainers() {
	if c.Pid("containerd") == 0 {
		return
	}
	list := func(kind string) []string {
		out, _ := c.ctr(10*time.Second, kind, "ls", "-q")
		return strings.Fields(out)
	}
	// Repeated: a container's processes may end a moment after the signal.
	until(10*time.Second, func() bool {
		tasks := list("tasks")
		if len(tasks) > 0 {
			c.ctr(10*time.Second, append([]string{"tasks", "rm", "-f"}, tasks...)...)
		}
		return len(list("tasks")) == 0
	})
	if containers := list("containers"); len(containers) > 0 {
		c.ctr(30*time.Second, append([]string{"containers", "rm"}, containers...)...)
	}
}

// unmount detaches every mount below the cluster's folder, deepest first.
func (c *Cluster) unmount() error {
	mounts := func() []string {
		text, _ := os.ReadFile("/proc/self/mounts")
		var found []string
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(unescape(fields[1]), c.Dir+"/") {
				found = append(found, unescape(fields[1]))
			}
		}
		sort.Sort(sort.Reverse(sort.StringSlice(found)))
		return found
	}
	for _, mount := range mounts() {
		syscall.Unmount(mount, syscall.MNT_DETACH)
	}
	if left := mounts(); len(left) > 0 {
		return fmt.Errorf("still mounted, so the folder stays: %s", strings.Join(left, ", "))
	}
	return nil
}

// unescape undoes the octal escapes of /proc/self/mounts.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}
