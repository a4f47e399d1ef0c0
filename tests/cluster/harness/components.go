package harness

import (
	"fmt"
	"os"
	"syscall"
)

// cniDir is where Debian's containernetworking-plugins puts the plugins.
const cniDir = "/usr/lib/cni"

const pauseImage = "localhost/imagegen-testcluster/pause:1"

// overlayMagic is the file system type of overlayfs, on which another overlay cannot stand.
const overlayMagic = 0x794c7630

func (c *Cluster) writeConfiguration() error {
	for _, dir := range []string{"run", "log", "etc", "cni", "kubelet", "containerd", "images"} {
		if err := os.MkdirAll(c.path(dir), 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{
		"etc/containerd.toml":      c.containerdConfig(),
		"etc/kubelet.yaml":         c.kubeletConfig(),
		"etc/resolv.conf":          "",
		"cni/10-imagegen.conflist": c.cniConfig(),
	}
	for name, text := range files {
		if err := os.WriteFile(c.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) containerdConfig() string {
	snapshotter := "overlayfs"
	var fs syscall.Statfs_t
	if err := syscall.Statfs(c.Dir, &fs); err == nil && fs.Type == overlayMagic {
		snapshotter = "native"
	}
	// netns_mounts_under_state_dir keeps the pods' namespaces out of /run/netns, where they could not be told from others'.
	return fmt.Sprintf(`version = 3
root = "%[1]s/containerd/root"
state = "%[1]s/containerd/state"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
  "io.containerd.nri.v1.nri",
]
[grpc]
  address = "%[2]s"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/containerd/opt"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "%[3]s"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "%[4]s"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["%[5]s"]
    conf_dir = "%[1]s/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "%[1]s/run/runc"
`, c.Dir, c.containerdSocket(), snapshotter, pauseImage, cniDir)
}

func (c *Cluster) kubeletConfig() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %[2]s
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /%[3]s
failSwapOn: false
makeIPTablesUtilChains: false
containerRuntimeEndpoint: unix://%[4]s
resolvConf: %[1]s/etc/resolv.conf
podLogsDir: %[1]s/kubelet/podlogs
volumePluginDir: %[1]s/kubelet/volplugins
tlsCertFile: %[1]s/pki/kubelet-server.crt
tlsPrivateKeyFile: %[1]s/pki/kubelet-server.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %[1]s/pki/ca.crt}}
authorization: {mode: Webhook}
readOnlyPort: 0
evictionHard: {memory.available: 100Mi, nodefs.available: "1%%", imagefs.available: "1%%", nodefs.inodesFree: "1%%", imagefs.inodesFree: "1%%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
nodeStatusUpdateFrequency: 5s
maxPods: 200
serializeImagePulls: false
clusterDomain: cluster.local
`, c.Dir, c.NodeIP(), c.name(), c.containerdSocket())
}

func (c *Cluster) cniConfig() string {
	return fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "imagegen", "plugins": [
  {"type": "bridge", "bridge": "%s", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "%s",
     "ranges": [[{"subnet": "%s", "rangeStart": "198.18.%d.10", "gateway": "%s"}]],
     "routes": [{"dst": "198.18.0.0/15"}]}}
]}
`, bridge, c.path("cni", "ipam"), c.podRange(), c.Slot, c.NodeIP())
}

// component is a name and the flags it is started with.
type component struct {
	name  string
	flags []string
}

func (c *Cluster) containerd() component {
	return component{"containerd", []string{"--config", c.path("etc", "containerd.toml")}}
}

func (c *Cluster) etcd() component {
	const client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	return component{"etcd", []string{
		"--name=e", "--data-dir=" + c.path("etcd"), "--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=e=" + peer,
		// A test cluster's data need not survive a power cut.
		"--unsafe-no-fsync",
	}}
}

func (c *Cluster) apiserver() component {
	pki := func(file string) string { return c.path("pki", file) }
	return component{"kube-apiserver", []string{
		"--etcd-servers=http://127.0.0.1:2379", "--bind-address=" + c.NodeIP(), "--advertise-address=" + c.NodeIP(), "--secure-port=6443",
		"--service-cluster-ip-range=" + c.serviceRange(), "--authorization-mode=Node,RBAC", "--anonymous-auth=true", "--allow-privileged=true",
		"--enable-admission-plugins=NodeRestriction", "--client-ca-file=" + pki("ca.crt"),
		"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
		"--kubelet-client-certificate=" + pki("apiserver-kubelet-client.crt"), "--kubelet-client-key=" + pki("apiserver-kubelet-client.key"),
		"--kubelet-certificate-authority=" + pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + pki("sa.pub"), "--service-account-signing-key-file=" + pki("sa.key"),
		// What an aggregated API (a metrics API, for example) needs.
		"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User", "--proxy-client-cert-file=" + pki("front-proxy-client.crt"),
		"--proxy-client-key-file=" + pki("front-proxy-client.key"), "--enable-aggregator-routing=true",
	}}
}

func (c *Cluster) controllerManager() component {
	config := c.path("pki", "kube-controller-manager.kubeconfig")
	return component{"kube-controller-manager", []string{
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--bind-address=127.0.0.1", "--use-service-account-credentials=true",
		"--service-account-private-key-file=" + c.path("pki", "sa.key"), "--root-ca-file=" + c.path("pki", "ca.crt"),
		"--cluster-signing-cert-file=" + c.path("pki", "ca.crt"), "--cluster-signing-key-file=" + c.path("pki", "ca.key"),
		"--leader-elect=false", "--service-cluster-ip-range=" + c.serviceRange(), "--allocate-node-cidrs=false",
		// Quicker than the defaults of 15 s, 50 s and 5 s, so that tests of scaling and of a lost node are short.
		"--horizontal-pod-autoscaler-sync-period=2s", "--node-monitor-grace-period=12s", "--node-monitor-period=2s",
		"--kube-api-qps=300", "--kube-api-burst=600",
	}}
}

func (c *Cluster) scheduler() component {
	config := c.path("pki", "kube-scheduler.kubeconfig")
	return component{"kube-scheduler", []string{
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--bind-address=127.0.0.1", "--leader-elect=false",
	}}
}

func (c *Cluster) kubelet() component {
	return component{"kubelet", []string{
		"--config=" + c.path("etc", "kubelet.yaml"), "--kubeconfig=" + c.path("pki", "kubelet.kubeconfig"),
		"--root-dir=" + c.path("kubelet"), "--cert-dir=" + c.path("kubelet", "pki"),
		"--hostname-override=" + NodeName, "--node-ip=" + c.NodeIP(),
	}}
}

func (c *Cluster) proxy() component {
	flags := []string{
		"--kubeconfig=" + c.path("pki", "kube-proxy.kubeconfig"), "--proxy-mode=nftables", "--cluster-cidr=" + c.podRange(),
		"--hostname-override=" + NodeName, "--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249",
		// Global limits of the machine stay as they are.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s",
	}
	if !bridgedTrafficIsFiltered() {
		flags = append(flags, "--masquerade-all=true")
	}
	return component{"kube-proxy", flags}
}

// StartComponent starts a component again after it was stopped or died.
func (c *Cluster) StartComponent(name string) error {
	for _, one := range []component{c.containerd(), c.etcd(), c.apiserver(), c.controllerManager(), c.scheduler(), c.kubelet(), c.proxy()} {
		if one.name == name {
			if c.Pid(name) > 0 {
				return nil
			}
			return c.start(one.name, one.flags...)
		}
	}
	return fmt.Errorf("there is no component %q", name)
}
