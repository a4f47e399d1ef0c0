package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

const kubernetesVersion = "1.36.3"

// program is one or more binaries built together from one Go module below tests/cluster.
type program struct {
	dir      string            // its module or package, relative to tests/cluster
	binaries map[string]string // name → package
	ldflags  string
	usual    string // how long a build from nothing takes on two cores, for the progress line
}

var programs = []program{
	{
		dir:      "hyperkube",
		binaries: map[string]string{"hyperkube": "."},
		ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=v" + kubernetesVersion +
			" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
		usual: "6 to 12 minutes",
	},
	{
		dir: "containerd",
		binaries: map[string]string{
			"containerd":              "github.com/containerd/containerd/v2/cmd/containerd",
			"containerd-shim-runc-v2": "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"ctr":                     "github.com/containerd/containerd/v2/cmd/ctr",
		},
		ldflags: "-s -w",
		usual:   "80 to 100 s",
	},
	{
		dir:      "grpcurl",
		binaries: map[string]string{"grpcurl": "github.com/fullstorydev/grpcurl/cmd/grpcurl"},
		ldflags:  "-s -w",
		usual:    "30 to 55 s",
	},
	{dir: "pause", binaries: map[string]string{"pause": "."}, ldflags: "-s -w", usual: "1 s"},
}

// hyperkubeNames are the names under which the one Kubernetes binary is called.
var hyperkubeNames = []string{
	"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
}

// CacheDir is where built programs are kept between runs, outside any checkout.
func CacheDir() (string, error) {
	if dir := os.Getenv("IMAGEGEN_CACHE"); dir != "" {
		return dir, nil
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder: set IMAGEGEN_CACHE or HOME: %w", err)
	}
	return filepath.Join(base, "imagegen"), nil
}

// Build makes every program that the cache lacks and returns where each binary lies. A binary is known by the hash of
// its module's go.mod, go.sum and sources, so that a changed version is built anew and an unchanged one never.
func Build(log io.Writer) (map[string]string, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	bin := filepath.Join(cache, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	source, sourceErr := sourceDir()
	built := map[string]string{}
	for _, p := range programs {
		if sourceErr != nil {
			return nil, sourceErr
		}
		if err := p.build(filepath.Join(source, p.dir), bin, built, log); err != nil {
			return nil, fmt.Errorf("build %s: %w", p.dir, err)
		}
	}
	return built, nil
}

func (p program) build(source, bin string, built map[string]string, log io.Writer) error {
	hash, err := p.hash(source)
	if err != nil {
		return err
	}
	complete := true
	for name := range p.binaries {
		built[name] = filepath.Join(bin, name+"-"+hash)
		if _, err := os.Stat(built[name]); err != nil {
			complete = false
		}
	}
	if !complete {
		if _, err := exec.LookPath("go"); err != nil {
			return errors.New("Go 1.26 or newer is needed to build it, and there is no `go` in PATH")
		}
		began := time.Now()
		fmt.Fprintf(log, "building %s, usually %s on two cores the first time\n", p.dir, p.usual)
		for name, pkg := range p.binaries {
			// Into place by rename: a build that is interrupted leaves nothing that looks finished.
			partial := built[name] + ".partial"
			command := exec.Command("go", "build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", p.ldflags, "-o", partial, pkg)
			command.Dir = source
			command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
			if out, err := command.CombinedOutput(); err != nil {
				return fmt.Errorf("go build %s: %w\n%s", pkg, err, tail(string(out), 20))
			}
			if err := os.Rename(partial, built[name]); err != nil {
				return err
			}
		}
		fmt.Fprintf(log, "built %s in %.0f s\n", p.dir, time.Since(began).Seconds())
	}
	for name := range p.binaries {
		if err := relink(built[name], filepath.Join(bin, name)); err != nil {
			return err
		}
	}
	return nil
}

func (p program) hash(source string) (string, error) {
	files, err := filepath.Glob(filepath.Join(source, "*"))
	if err != nil {
		return "", err
	}
	sort.Strings(files)
	sum := sha256.New()
	fmt.Fprintln(sum, p.ldflags)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(sum, filepath.Base(file), len(text))
		sum.Write(text)
	}
	if len(files) == 0 {
		return "", fmt.Errorf("no sources in %s", source)
	}
	return hex.EncodeToString(sum.Sum(nil))[:12], nil
}

// sourceDir finds tests/cluster from the working directory upwards.
func sourceDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		for _, candidate := range []string{at, filepath.Join(at, "tests", "cluster")} {
			if _, err := os.Stat(filepath.Join(candidate, "hyperkube", "go.mod")); err == nil {
				return candidate, nil
			}
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("tests/cluster not found from %s upwards: run this inside the ImageGen checkout", dir)
		}
	}
}

// relink points link at target, replacing what was there.
func relink(target, link string) error {
	if current, err := os.Readlink(link); err == nil && current == target {
		return nil
	}
	fresh := link + ".new"
	os.Remove(fresh)
	if err := os.Symlink(target, fresh); err != nil {
		return err
	}
	return os.Rename(fresh, link)
}

// linkPrograms gives the cluster its own names for the binaries, so that a later build does not change a running one.
func (c *Cluster) linkPrograms(built map[string]string) error {
	if err := os.MkdirAll(c.Bin(), 0o755); err != nil {
		return err
	}
	for name, file := range built {
		if err := relink(file, c.path("bin", name)); err != nil {
			return err
		}
	}
	for _, name := range hyperkubeNames {
		if err := relink(built["hyperkube"], c.path("bin", name)); err != nil {
			return err
		}
	}
	return nil
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
