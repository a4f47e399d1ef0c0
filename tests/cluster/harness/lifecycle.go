package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Up brings up the cluster in dir, or returns at once when it runs. slot -1 takes the lowest free one.
func Up(dir string, slot int, log io.Writer) (*Cluster, error) {
	began := time.Now()
	if err := RequireRoot(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	// Linux allows 107 bytes for a Unix socket's path; the longest here is below run/.
	if socket := filepath.Join(dir, "kubelet/device-plugins/kubelet.sock"); len(socket) > 100 {
		return nil, fmt.Errorf("the path of %s is too long for Unix sockets below it (%d bytes, at most 100): choose a shorter --dir", dir, len(socket))
	}
	if old, err := Open(dir, log); err == nil {
		if slot >= 0 && slot != old.Slot {
			return nil, fmt.Errorf("the cluster in %s has slot %d: take it down with --wipe before giving it slot %d", dir, old.Slot, slot)
		}
		if a, err := old.api(); err == nil && len(old.Stopped()) == 0 && a.ready() && a.nodeReady(time.Time{}) {
			old.say("already up")
			return old, nil
		}
		// Half a cluster, or one from before a reboot: its data stays, its processes and mounts go.
		slot = old.Slot
		old.say("clearing what an earlier run left in %s", dir)
		if err := old.Down(false); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, ErrNoCluster) {
		return nil, err
	} else if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		return nil, fmt.Errorf("%s is not empty and holds no cluster: choose a folder that may be filled and wiped", dir)
	}
	if err := checkRequirements(); err != nil {
		return nil, err
	}
	built, err := Build(log)
	if err != nil {
		return nil, err
	}
	if slot, err = claim(dir, slot); err != nil {
		return nil, err
	}
	c := &Cluster{Dir: dir, Slot: slot, Log: log, began: began}
	if err := c.up(built); err != nil {
		return nil, errors.Join(err, c.Down(false))
	}
	return c, nil
}

func (c *Cluster) up(built map[string]string) error {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return err
	}
	text, err := json.Marshal(memory{Slot: c.Slot})
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path("cluster.json"), text, 0o600); err != nil {
		return err
	}
	c.say("starting Kubernetes %s in %s (slot %d), usually 5 to 10 s", kubernetesVersion, c.Dir, c.Slot)
	for _, step := range []func() error{
		func() error { return c.linkPrograms(built) }, c.writePKI, c.writeConfiguration, c.addNetwork, c.addCgroup,
		func() error { return c.StartComponent("containerd") },
		func() error { return c.StartComponent("etcd") },
		func() error { return c.StartComponent("kube-apiserver") },
		c.importPause,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	c.say("containerd is up")
	a, err := c.api()
	if err != nil {
		return err
	}
	if err := c.await("the API server", "kube-apiserver", time.Minute, a.ready); err != nil {
		return err
	}
	c.say("API server is ready")
	// Only now: before the bootstrap of RBAC these end at once.
	for _, name := range []string{"kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"} {
		if err := c.StartComponent(name); err != nil {
			return err
		}
	}
	// A cluster that was up before remembers a node that was Ready then: only a later heartbeat counts.
	since := time.Now().Truncate(time.Second)
	if err := c.await("the node to be Ready", "kubelet", time.Minute, func() bool { return a.nodeReady(since) }); err != nil {
		return err
	}
	if err := c.await("the default service account", "kube-controller-manager", time.Minute, a.defaultAccount); err != nil {
		return err
	}
	c.say("node is Ready")
	return nil
}

func (c *Cluster) importPause() error {
	root := c.path("images", "pause")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	program, err := os.ReadFile(c.path("bin", "pause"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "pause"), program, 0o755); err != nil {
		return err
	}
	archive := c.path("images", "pause.tar")
	if err := WriteImage(archive, pauseImage, root, "/pause"); err != nil {
		return err
	}
	if err := c.await("containerd", "containerd", time.Minute, func() bool {
		_, err := c.ctr(5*time.Second, "version")
		return err == nil
	}); err != nil {
		return err
	}
	return c.Load(archive)
}

func (c *Cluster) ctr(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	command := exec.CommandContext(ctx, c.path("bin", "ctr"), append([]string{"-a", c.containerdSocket(), "-n", "k8s.io"}, args...)...)
	// Apart: on a machine with cgroup v1 every call warns on standard error.
	var complaint strings.Builder
	command.Stderr = &complaint
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, tail(complaint.String(), 3))
	}
	return string(out), nil
}

// Load imports image archives (docker-archive or oci-archive tars) into the cluster's containerd.
func (c *Cluster) Load(archives ...string) error {
	for _, archive := range archives {
		if _, err := os.Stat(archive); err != nil {
			return err
		}
		if _, err := c.ctr(10*time.Minute, "images", "import", "--local", archive); err != nil {
			return err
		}
	}
	return nil
}

// SetGPUs makes the node offer count devices of nvidia.com/gpu that do not exist: the kubelet admits pods that ask for
// them, and only so many.
func (c *Cluster) SetGPUs(count int) error {
	a, err := c.api()
	if err != nil {
		return err
	}
	patch := fmt.Sprintf(`[{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": "%d"}]`, count)
	_, err = a.call(http.MethodPatch, "/api/v1/nodes/"+NodeName+"/status", "application/json-patch+json", []byte(patch))
	return err
}

// Stopped names the components that do not run.
func (c *Cluster) Stopped() []string {
	var stopped []string
	for _, name := range componentNames() {
		if c.Pid(name) == 0 {
			stopped = append(stopped, name)
		}
	}
	return stopped
}

func componentNames() []string {
	var names []string
	for _, group := range stopOrder {
		names = append(names, group...)
	}
	return append(names, "containerd")
}

// Status describes the cluster in a few lines; the error says what is wrong with it.
func (c *Cluster) Status() (string, error) {
	var text strings.Builder
	fmt.Fprintf(&text, "folder      %s\nslot        %d (pods %s, Services %s, API server %s)\nkubeconfig  %s\n",
		c.Dir, c.Slot, c.podRange(), c.serviceRange(), c.Server(), c.Kubeconfig())
	for _, name := range componentNames() {
		state := "stopped"
		if pid := c.Pid(name); pid > 0 {
			state = fmt.Sprintf("pid %d", pid)
		}
		fmt.Fprintf(&text, "%-24s %s\n", name, state)
	}
	if stopped := c.Stopped(); len(stopped) > 0 {
		return text.String(), fmt.Errorf("not running: %s; `testcluster up --dir %s` starts them", strings.Join(stopped, ", "), c.Dir)
	}
	a, err := c.api()
	if err != nil {
		return text.String(), err
	}
	if !a.nodeReady(time.Time{}) {
		return text.String(), errors.New("the node is not Ready")
	}
	text.WriteString("node        Ready\n")
	return text.String(), nil
}

// ContainerPid is the first process of a container, by the ID that the pod's status has (with or without its scheme).
func (c *Cluster) ContainerPid(id string) (int, error) {
	id = strings.TrimPrefix(id, "containerd://")
	out, err := c.ctr(10*time.Second, "tasks", "ls")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == id {
			return strconv.Atoi(fields[1])
		}
	}
	return 0, fmt.Errorf("container %s does not run", id)
}
