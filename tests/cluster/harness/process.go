package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// components in the order in which they start; they stop in groups, in the order of stopOrder.
var stopOrder = [][]string{
	{"kubelet", "kube-proxy", "kube-scheduler", "kube-controller-manager"}, {"kube-apiserver"}, {"etcd"},
}

// start runs a component in the cluster's network namespace, detached, and remembers its pid together with the
// process's start time: a pid alone may have been given to somebody else by the time it is used.
func (c *Cluster) start(name string, args ...string) error {
	log, err := os.Create(c.LogFile(name))
	if err != nil {
		return err
	}
	defer log.Close()
	// nsenter executes the program in its own place, so the pid is the component's.
	command := exec.Command("nsenter", append([]string{"--net=" + c.netns(), "--", c.path("bin", name)}, args...)...)
	command.Stdout, command.Stderr = log, log
	command.Dir = c.Dir
	command.Env = append(cleanEnvironment(), "PATH="+c.Bin()+":/usr/sbin:/usr/bin:/sbin:/bin")
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	pid := command.Process.Pid
	// Reaps the child when a long-lived caller (the tests) outlives it; a short-lived caller leaves that to init.
	go command.Wait()
	started, err := startTime(pid)
	if err != nil {
		return fmt.Errorf("%s ended at once: %w\n%s", name, err, c.logTail(name))
	}
	return os.WriteFile(c.pidFile(name), fmt.Appendf(nil, "%d %s\n", pid, started), 0o600)
}

// cleanEnvironment drops what would change a component's behaviour: proxies, kubeconfigs and Go settings.
func cleanEnvironment() []string {
	var kept []string
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		switch strings.ToUpper(name) {
		case "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "KUBECONFIG", "GOMAXPROCS", "GODEBUG", "GOMEMLIMIT", "PATH":
		default:
			kept = append(kept, variable)
		}
	}
	return kept
}

func (c *Cluster) pidFile(name string) string { return c.path("run", name+".pid") }

// Pid is the process of a component, or 0 when it does not run.
func (c *Cluster) Pid(name string) int {
	text, err := os.ReadFile(c.pidFile(name))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	if len(fields) != 2 {
		return 0
	}
	pid, err := strconv.Atoi(fields[0])
	if err != nil {
		return 0
	}
	if started, err := startTime(pid); err != nil || started != fields[1] {
		return 0
	}
	return pid
}

// startTime is the time a process began, in clock ticks since boot; an error when there is none or it is a zombie.
func startTime(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The command name in parentheses may hold spaces; the state is field 3 and the start time field 22.
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" {
		return "", fmt.Errorf("process %d has ended", pid)
	}
	return fields[19], nil
}

// stop ends components by pid: a request first, force after patience.
func (c *Cluster) stop(patience time.Duration, names ...string) {
	signal := func(s syscall.Signal) (running int) {
		for _, name := range names {
			if pid := c.Pid(name); pid > 0 {
				running++
				if s != 0 {
					syscall.Kill(pid, s)
				}
			}
		}
		return running
	}
	// A component that a test has stopped cannot hear a request to end.
	signal(syscall.SIGCONT)
	signal(syscall.SIGTERM)
	if !until(patience, func() bool { return signal(0) == 0 }) {
		signal(syscall.SIGKILL)
		until(5*time.Second, func() bool { return signal(0) == 0 })
	}
	for _, name := range names {
		os.Remove(c.pidFile(name))
	}
}

// until polls a condition; false when time ran out.
func until(limit time.Duration, condition func() bool) bool {
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		if condition() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// await polls a condition while a component lives, and tells the end of its log when it does not or time runs out.
func (c *Cluster) await(what, component string, limit time.Duration, condition func() bool) error {
	died := false
	if until(limit, func() bool {
		died = c.Pid(component) == 0
		return died || condition()
	}) && !died {
		return nil
	}
	state := fmt.Sprintf("not so after %s", limit)
	if died {
		state = component + " ended"
	}
	return fmt.Errorf("waiting for %s: %s; the end of %s:\n%s", what, state, c.LogFile(component), c.logTail(component))
}

func (c *Cluster) logTail(name string) string {
	text, err := os.ReadFile(c.LogFile(name))
	if err != nil {
		return err.Error()
	}
	return tail(string(text), 12)
}

// strays are processes that a component started and that outlive it: containerd's shims, known by the socket they name.
func (c *Cluster) strays() []int {
	var pids []int
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, entry := range entries {
		text, err := os.ReadFile(entry)
		if errors.Is(err, fs.ErrNotExist) || len(text) == 0 {
			continue
		}
		args := strings.Split(string(text), "\x00")
		if !strings.HasSuffix(args[0], "containerd-shim-runc-v2") {
			continue
		}
		for i, arg := range args[:len(args)-1] {
			if arg == "-address" && args[i+1] == c.containerdSocket() {
				if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(entry))); err == nil {
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids
}
