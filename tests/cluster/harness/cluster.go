// Package harness brings up a real single-node Kubernetes on one Linux machine, without a container engine, and takes
// it down again. Every component runs as a process in a network namespace of the cluster's own, with all files in one
// folder; what the machine itself sees of a cluster is one veth pair, four routes, one cgroup and the processes.
package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// NodeName is the name of a cluster's only node.
const NodeName = "imagegen-node"

// maxSlots bounds how many clusters run side by side: each slot has its own /24 for pods and one for Services.
const maxSlots = 8

// Cluster is one cluster, running or not. Dir holds everything it has; Slot numbers its address ranges.
type Cluster struct {
	Dir  string
	Slot int
	// Log receives one line for each step. Never nil after New or Open.
	Log   io.Writer
	began time.Time
}

// memory is what a cluster's folder remembers between commands.
type memory struct {
	Slot int `json:"slot"`
}

// ErrNoCluster says that a folder holds no cluster.
var ErrNoCluster = errors.New("no cluster in this folder")

// Open returns the cluster that dir holds, or ErrNoCluster.
func Open(dir string, log io.Writer) (*Cluster, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "cluster.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNoCluster)
	}
	if err != nil {
		return nil, err
	}
	var m memory
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("%s/cluster.json: %w", dir, err)
	}
	return &Cluster{Dir: dir, Slot: m.Slot, Log: log, began: time.Now()}, nil
}

// path names a file or folder of the cluster.
func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.Dir}, parts...)...)
}

// Kubeconfig is the path of the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return c.path("kubeconfig") }

// Bin is the folder with the cluster's kubectl, ctr and components.
func (c *Cluster) Bin() string { return c.path("bin") }

// LogFile is the path of a component's log.
func (c *Cluster) LogFile(component string) string { return c.path("log", component+".log") }

// NodeIP is at once the node's address, the API server's and the pods' gateway.
func (c *Cluster) NodeIP() string { return fmt.Sprintf("198.18.%d.1", c.Slot) }

// Server is the API server's address, the same from the machine and from pods.
func (c *Cluster) Server() string { return "https://" + c.NodeIP() + ":6443" }

func (c *Cluster) podRange() string     { return fmt.Sprintf("198.18.%d.0/24", c.Slot) }
func (c *Cluster) serviceRange() string { return fmt.Sprintf("198.19.%d.0/24", c.Slot) }
func (c *Cluster) firstService() string { return fmt.Sprintf("198.19.%d.1", c.Slot) }

// hostLinkIP and nodeLinkIP are the two ends of the veth pair between the machine and the cluster's namespace. They are
// outside the pod range so that a pod answers the machine through the node, where connection tracking undoes the DNAT.
func (c *Cluster) hostLinkIP() string { return fmt.Sprintf("198.18.%d.1", 128+c.Slot) }
func (c *Cluster) nodeLinkIP() string { return fmt.Sprintf("198.18.%d.2", 128+c.Slot) }

// name is what the cluster's namespace, link and cgroup are called: at most 15 characters, the kernel's limit.
func (c *Cluster) name() string { return fmt.Sprintf("imagegen%d", c.Slot) }

func (c *Cluster) netns() string { return "/run/netns/" + c.name() }

func (c *Cluster) containerdSocket() string { return c.path("run", "containerd.sock") }

// say prints one progress line with the seconds since the command began.
func (c *Cluster) say(format string, args ...any) {
	fmt.Fprintf(c.Log, "[%5.1f s] %s\n", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}

// RequireRoot explains why the caller must be root, unless it is.
func RequireRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("this needs root: it makes a network namespace, mounts and cgroups. Run it as root (sudo)")
	}
	return nil
}
