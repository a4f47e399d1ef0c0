package harness

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestOverlapNamesTheRangeThatIsInTheWay(t *testing.T) {
	for _, c := range []struct {
		routed, expected string
		slot             int
	}{
		{"10.0.0.0/8", "", 0},
		{"198.18.0.0/24", "198.18.0.0/24", 0},
		{"198.18.0.0/24", "", 1},
		{"198.18.0.0/15", "198.18.0.0/15", 5},
		{"198.19.3.128/25", "198.19.3.128/25", 3},
		{"198.18.130.0/30", "198.18.130.0/30", 2},
		{"0.0.0.0/0", "", 0},
	} {
		if got := overlap(c.slot, []netip.Prefix{netip.MustParsePrefix(c.routed)}); got != c.expected {
			t.Errorf("slot %d beside %s: %q, expected %q", c.slot, c.routed, got, c.expected)
		}
	}
}

func TestAPidThatWasGivenToSomebodyElseIsNotOurs(t *testing.T) {
	c := &Cluster{Dir: t.TempDir()}
	if err := os.MkdirAll(c.path("run"), 0o755); err != nil {
		t.Fatal(err)
	}
	started, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for text, expected := range map[string]int{
		fmt.Sprintf("%d %s\n", os.Getpid(), started):       os.Getpid(),
		fmt.Sprintf("%d %s0\n", os.Getpid(), started):      0,
		fmt.Sprintf("%d\n", os.Getpid()):                   0,
		fmt.Sprintf("%d %s\n", os.Getpid()+1<<30, started): 0,
	} {
		if err := os.WriteFile(c.pidFile("etcd"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := c.Pid("etcd"); got != expected {
			t.Errorf("%q: %d, expected %d", text, got, expected)
		}
	}
}

func TestUpRefusesAFolderThatHoldsSomethingElse(t *testing.T) {
	if err := RequireRoot(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Up(dir, -1, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "is not empty and holds no cluster") {
		t.Errorf("expected a refusal, got %v", err)
	}
}

func TestUpTwiceThenDownLeavesNothing(t *testing.T) {
	if err := RequireRoot(); err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "igh")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	c, err := Up(dir, -1, &log)
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	downed := false
	defer func() {
		if !downed {
			c.Down(true)
		}
	}()
	kubelet := c.Pid("kubelet")
	began := time.Now()
	again, err := Up(dir, -1, &log)
	if err != nil || again.Pid("kubelet") != kubelet || time.Since(began) > 5*time.Second {
		t.Errorf("a second up took %s and gave kubelet %d after %d (%v)", time.Since(began), again.Pid("kubelet"), kubelet, err)
	}
	if _, err := Up(dir, (c.Slot+1)%maxSlots, &log); err == nil {
		t.Error("a running cluster was given another slot")
	}
	if err := c.SetGPUs(2); err != nil {
		t.Error(err)
	}
	// A component that died is started again.
	c.stop(5*time.Second, "kube-proxy")
	if again, err = Up(dir, -1, &log); err != nil || again.Pid("kube-proxy") == 0 {
		t.Errorf("up did not bring kube-proxy back: %v", err)
	}

	if err := c.Down(true); err != nil {
		t.Fatal(err)
	}
	downed = true
	for what, left := range map[string]string{
		"routes":     grep(t, c.name(), "ip", "route", "show", "table", "all"),
		"ranges":     grep(t, c.podRange(), "ip", "route", "show", "table", "all"),
		"links":      grep(t, c.name(), "ip", "link"),
		"namespaces": grep(t, c.name(), "ip", "netns"),
		"mounts":     grep(t, dir, "cat", "/proc/self/mounts"),
		"processes":  grep(t, dir, "ps", "-eo", "args"),
	} {
		if left != "" {
			t.Errorf("%s are left: %s", what, left)
		}
	}
	for _, cgroup := range append(c.cgroupDirs(), dir) {
		if _, err := os.Stat(cgroup); err == nil {
			t.Errorf("%s is left", cgroup)
		}
	}
}

// grep is the lines of a command's output that contain a text.
func grep(t *testing.T, text, command string, args ...string) string {
	t.Helper()
	out, err := exec.Command(command, args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return strings.Join(found, "")
}
