package harness

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Own notes that the cluster lives no longer than this process. RemoveAbandoned then removes it when the process was
// killed before it could.
func (c *Cluster) Own() error {
	started, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	return os.WriteFile(c.path("owner"), fmt.Appendf(nil, "%d %s\n", os.Getpid(), started), 0o600)
}

// RemoveAbandoned takes down every cluster of this machine whose owner has ended.
func RemoveAbandoned(log io.Writer) error {
	var dirs []string
	if err := withRegistry(func(r *registry) error {
		for _, dir := range r.Clusters {
			dirs = append(dirs, dir)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, dir := range dirs {
		c, err := Open(dir, log)
		if err != nil {
			continue
		}
		text, err := os.ReadFile(c.path("owner"))
		if err != nil {
			continue
		}
		pid, began, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
		number, _ := strconv.Atoi(pid)
		if started, err := startTime(number); err == nil && started == began {
			continue
		}
		c.say("removing the cluster that an interrupted run left in %s", dir)
		if err := c.Down(true); err != nil {
			return err
		}
	}
	return nil
}
