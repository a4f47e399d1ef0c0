package imagegen_test

import (
	"context"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen.dev/tests/cluster/fixture"
)

// elsewhere are the blocks of commands that this test does not run, by file and beginning, and why.
var elsewhere = map[string]string{
	"README.md: make demo":          "brings up what this test stands on",
	"README.md: make test":          "is what runs this test",
	"README.md: helm install":       "tests/chart",
	"docs/install.md: ":             "tests/chart; the rest needs a registry",
	"docs/client.md: cargo install": "compiles for minutes what make cli has compiled",
	"docs/client.md: imagegen generate \"a red apple\" -o pictures/": "needs a name in DNS; the client's own tests connect by TLS with a token",
	"docs/worker.md: imagegen-worker serve":                          "never ends",
	"docs/keda.md: ":                                                 "needs KEDA",
	"docs/development-cluster.md: ":                                  "a second cluster; the harness under these commands is what every test here starts with",
}

// block is the content of a code block of a manual.
type block struct{ file, kind, text string }

// blocks reads the code blocks of a manual.
func blocks(t *testing.T, file string) []block {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(env.Root, file))
	if err != nil {
		t.Fatal(err)
	}
	var all []block
	kind, inside := "", false
	var lines []string
	for _, line := range strings.Split(string(text), "\n") {
		fence := strings.HasPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && inside:
			all = append(all, block{file, kind, strings.Join(lines, "\n")})
			inside = false
		case fence:
			kind, inside, lines = strings.TrimPrefix(strings.TrimSpace(line), "```"), true, nil
		case inside:
			lines = append(lines, line)
		}
	}
	return all
}

func runsElsewhere(b block) (beginning string, found bool) {
	for beginning := range elsewhere {
		if strings.HasPrefix(b.file+": "+strings.TrimSpace(b.text), beginning) {
			return beginning, true
		}
	}
	return "", false
}

// reader is a person with a terminal: a folder that looks like the checkout, the programs of this cluster and of the
// release build, and a kubeconfig with two contexts.
type reader struct{ folder, kubeconfig, programs string }

func newReader(t *testing.T) reader {
	t.Helper()
	release := filepath.Join(env.Cache, "target", "release")
	r := reader{folder: t.TempDir(), kubeconfig: filepath.Join(t.TempDir(), "kubeconfig"), programs: env.Cluster.Bin() + ":" + release}
	for _, name := range []string{"proto", "deploy", "charts", "tests"} {
		if err := os.Symlink(filepath.Join(env.Root, name), filepath.Join(r.folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(env.Cluster.Kubeconfig())
	if err == nil {
		err = os.WriteFile(r.kubeconfig, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.run(t, block{"", "", `kubectl config set-context staging --cluster="$(kubectl config view -o jsonpath='{.contexts[0].context.cluster}')" ` +
		`--user="$(kubectl config view -o jsonpath='{.contexts[0].context.user}')"`})
	return r
}

func (r reader) run(t *testing.T, b block) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	command := env.Command(ctx, "bash", "-euo", "pipefail", "-c", b.text)
	if b.kind == "python" {
		command = env.Command(ctx, filepath.Join(r.folder, "venv/bin/python"), "-c", b.text)
	}
	command.Dir = r.folder
	command.Env = append(command.Env, "KUBECONFIG="+r.kubeconfig, "PATH="+r.programs+":"+filepath.Join(env.Cache, "bin")+":"+os.Getenv("PATH"))
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("%s says:\n%s\nwhich gives %v:\n%s", b.file, b.text, err, out)
	}
}

// forward makes a worker reachable at localhost:8500, where the manuals expect it.
func (r reader) forward(t *testing.T) {
	t.Helper()
	if taken, err := net.DialTimeout("tcp", "localhost:8500", time.Second); err == nil {
		taken.Close()
		t.Fatal("port 8500 of this machine is taken; the manuals' examples need it")
	}
	ctx, cancel := context.WithCancel(context.Background())
	command := env.Command(ctx, "kubectl", "port-forward", "service/turbo", "8500:8500")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = command.Wait()
	})
	fixture.Eventually(t, "the forwarded port to answer", 30*time.Second, func() (bool, string) {
		connection, err := net.DialTimeout("tcp", "localhost:8500", time.Second)
		if err != nil {
			return false, err.Error()
		}
		return connection.Close() == nil, ""
	})
}

// Every command of the manuals, run as it is written, or named above. MODEL stands for a model's folder.
func TestTheManualsCommands(t *testing.T) {
	operator(t)
	env.Kubectl(t, "", "create", "namespace", "art")
	t.Cleanup(func() { env.Kubectl(t, "", "delete", "namespace", "art") })
	for namespace, names := range map[string][]string{"default": {"turbo", "emoji"}, "art": {"turbo"}} {
		for _, name := range names {
			manifest := env.Manifest(fixture.Fleet{Name: name, Replicas: 1})
			env.Kubectl(t, manifest, "apply", "-n", namespace, "-f", "-")
			t.Cleanup(func() { env.Kubectl(t, "", "delete", "imagegen", name, "-n", namespace) })
		}
	}
	for _, name := range []string{"turbo", "emoji"} {
		env.WaitReady(t, "default", name, 2*time.Minute)
	}
	env.WaitReady(t, "art", "turbo", 2*time.Minute)
	person := newReader(t)
	person.forward(t)
	manuals, err := filepath.Glob(filepath.Join(env.Root, "docs", "*.md"))
	if err != nil || len(manuals) == 0 {
		t.Fatalf("no manuals in docs/: %v", err)
	}
	files := []string{"README.md"}
	for _, manual := range manuals {
		files = append(files, filepath.Join("docs", filepath.Base(manual)))
	}
	unused := maps.Clone(elsewhere)
	ran := 0
	for _, file := range files {
		for _, b := range blocks(t, file) {
			if beginning, found := runsElsewhere(b); found {
				delete(unused, beginning)
			} else if b.kind == "sh" || b.kind == "python" {
				b.text = strings.ReplaceAll(b.text, "MODEL", "tests/models/emoji-zimage")
				person.run(t, b)
				ran++
			}
		}
	}
	if ran == 0 {
		t.Error("no command was found in the manuals")
	}
	for beginning := range unused {
		t.Errorf("no manual has the commands %q any more", beginning)
	}
	for _, picture := range []string{"apple.png", "apple.webp", "apple-1.jpg", "apple-4.jpg", "apple-1.png"} {
		if _, err := os.Stat(filepath.Join(person.folder, picture)); err != nil {
			t.Errorf("the manuals promise %s: %v", picture, err)
		}
	}
}
