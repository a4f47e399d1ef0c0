// Package chart_test takes the Helm chart through its life with helm 4 and helm 3.
package chart_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"imagegen.dev/tests/cluster/fixture"
)

var env *fixture.Env

func TestMain(m *testing.M) { os.Exit(fixture.Run(m, &env)) }

const (
	definition = "customresourcedefinition.apiextensions.k8s.io/imagegens.imagegen.dev"
	request    = `{"prompt": "anything", "width": 64, "height": 64, "steps": 2}`
)

func helm(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, complaint, err := env.TryHelm(program, args...); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, out, complaint)
	}
}

func install(more ...string) []string {
	return env.ChartArgs("install", append([]string{"--create-namespace"}, more...)...)
}

// clean removes everything that a test of this package may leave, so that the next starts from an empty cluster.
func clean(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		env.TryHelm("helm", "uninstall", "imagegen", "--namespace", fixture.SystemNamespace, "--wait", "--ignore-not-found")
		if _, complaint, err := env.TryKubectl("", "delete", definition, "--ignore-not-found"); err != nil {
			t.Errorf("remove the definition: %s", complaint)
		}
	})
}

func TestLifeOfARelease(t *testing.T) {
	for _, program := range []string{"helm", "helm3"} {
		t.Run(program, func(t *testing.T) {
			clean(t)
			namespace := env.Namespace(t, "life-"+program, "restricted")
			helm(t, program, install()...)
			env.Kubectl(t, env.Manifest(fixture.Fleet{Name: "fleet", Replicas: 1, Script: "step_seconds: 0.01"}), "apply", "-n", namespace, "-f", "-")
			env.WaitReady(t, namespace, "fleet", time.Minute)
			address := env.Address(t, namespace, "fleet")
			workers := fixture.PodUIDs(env.Workers(t, namespace, "fleet"))
			unchanged := func(when string) {
				t.Helper()
				if now := fixture.PodUIDs(env.Workers(t, namespace, "fleet")); now != workers {
					t.Errorf("the workers were replaced %s: %s, then %s", when, workers, now)
				}
				env.Generate(t, address, request)
			}

			helm(t, program, env.ChartArgs("upgrade", "--set", "concurrency=4")...)
			unchanged("by an upgrade")

			helm(t, program, "uninstall", "imagegen", "--namespace", fixture.SystemNamespace, "--wait")
			fixture.Eventually(t, "the operator to be gone", time.Minute, func() (bool, string) {
				left := env.Kubectl(t, "", "get", "pods", "-n", fixture.SystemNamespace, "-o", "name")
				return left == "", left
			})
			env.Kubectl(t, "", "get", definition)
			if env.ImageGen(t, namespace, "fleet") == nil {
				t.Fatal("the ImageGen went with the release")
			}
			unchanged("by an uninstall")

			helm(t, program, install()...)
			env.Kubectl(t, "", "annotate", "imagegen", "fleet", "-n", namespace, "test=reinstalled")
			env.Kubectl(t, "", "patch", "imagegen", "fleet", "-n", namespace, "--type=merge", "-p", `{"spec": {"disruption": {"maxUnavailable": 2}}}`)
			env.WaitReady(t, namespace, "fleet", time.Minute)
			fixture.Eventually(t, "the new operator to own the children", time.Minute, func() (bool, string) {
				budget := env.Kubectl(t, "", "get", "pdb", "fleet", "-n", namespace, "-o", "jsonpath={.spec.maxUnavailable}")
				return budget == "2", budget
			})
			unchanged("by a reinstall")
		})
	}
}

// An older definition stands there that somebody applied without Helm: one without spec.worker.sizePolicy.
func older(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(env.Root, "deploy/crd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var crd map[string]any
	if err := yaml.Unmarshal(text, &crd); err != nil {
		t.Fatal(err)
	}
	at := crd["spec"].(map[string]any)["versions"].([]any)[0].(map[string]any)["schema"].(map[string]any)["openAPIV3Schema"].(map[string]any)
	for _, field := range []string{"spec", "worker"} {
		at = at["properties"].(map[string]any)[field].(map[string]any)
	}
	delete(at["properties"].(map[string]any), "sizePolicy")
	if defaults, found := at["default"].(map[string]any); found {
		delete(defaults, "sizePolicy")
	}
	old, err := yaml.Marshal(crd)
	if err != nil {
		t.Fatal(err)
	}
	return string(old)
}

func TestInstallBesideAnOlderDefinition(t *testing.T) {
	manifest := func() string {
		return env.Manifest(fixture.Fleet{Name: "old", Replicas: 0})
	}
	newField := strings.Replace(manifest(), "    device: Cpu\n", "    device: Cpu\n    sizePolicy: Bucket\n", 1)
	setUp := func(t *testing.T, name string) string {
		t.Helper()
		clean(t)
		env.Kubectl(t, older(t), "apply", "-f", "-")
		namespace := env.Namespace(t, name, "restricted")
		fixture.Eventually(t, "the older definition to be served", 30*time.Second, func() (bool, string) {
			_, complaint, err := env.TryKubectl(manifest(), "apply", "-n", namespace, "-f", "-")
			return err == nil, complaint
		})
		if out, complaint, err := env.TryKubectl(newField, "apply", "-n", namespace, "-f", "-"); err == nil || !strings.Contains(complaint, "sizePolicy") {
			t.Fatalf("the older definition should not know sizePolicy: %s%s", out, complaint)
		}
		return namespace
	}
	check := func(t *testing.T, namespace string) {
		t.Helper()
		// The API server takes a moment to serve a changed schema.
		fixture.Eventually(t, "the new field to be accepted", 30*time.Second, func() (bool, string) {
			_, complaint, err := env.TryKubectl(newField, "apply", "-n", namespace, "-f", "-")
			return err == nil, complaint
		})
		env.WaitCondition(t, namespace, "old", "Ready", "True", "ScaledToZero", time.Minute)
	}

	for _, program := range []string{"helm", "helm3"} {
		t.Run(program+" takes it over when told to", func(t *testing.T) {
			namespace := setUp(t, "take-"+program)
			out, complaint, err := env.TryHelm(program, install()...)
			if err == nil || !strings.Contains(complaint, "exists and cannot be imported into the current release") {
				t.Fatalf("expected the refusal that README and NOTES speak of, got: %s%s", out, complaint)
			}
			// Helm 4 applies on the server, where the fields of the older definition have an owner.
			if program == "helm" {
				helm(t, program, install("--take-ownership", "--force-conflicts")...)
			} else {
				helm(t, program, install("--take-ownership")...)
			}
			check(t, namespace)
		})
	}

	t.Run("left to kubectl", func(t *testing.T) {
		namespace := setUp(t, "left")
		env.Kubectl(t, "", "apply", "--server-side", "-f", "deploy/crd.yaml")
		helm(t, "helm", install("--set", "crds.install=false")...)
		check(t, namespace)
	})
}

// The commands that README and manual give, run as they are written there.
func TestDocumentedCommands(t *testing.T) {
	const manual = "docs/install.md"
	run := func(t *testing.T, file, beginning string) {
		t.Helper()
		command := env.Documented(t, file, beginning)
		if out, err := env.Shell(command); err != nil {
			t.Fatalf("%s says:\n%s\nwhich gives %v:\n%s", file, command, err, out)
		}
	}
	t.Run("helm", func(t *testing.T) {
		clean(t)
		run(t, "README.md", "helm install imagegen charts/imagegen")
		run(t, manual, "kubectl --namespace imagegen-system rollout status")
		run(t, manual, "helm test imagegen")
		run(t, manual, "helm upgrade imagegen charts/imagegen")
		run(t, manual, "helm uninstall imagegen")
		run(t, manual, "helm upgrade --install imagegen charts/imagegen --namespace imagegen-system --create-namespace --take-ownership")
		run(t, manual, "kubectl delete imagegens --all")
		run(t, manual, "helm uninstall imagegen")
		run(t, manual, "kubectl delete crd")
		run(t, manual, "kubectl delete namespace")
	})
	t.Run("kubectl", func(t *testing.T) {
		clean(t)
		run(t, manual, "kubectl apply -k deploy")
		env.Kubectl(t, "", "rollout", "status", "deployment", "-n", fixture.SystemNamespace, "--timeout=60s")
		// Applied again from the server's side, it changes nothing that matters.
		env.Kubectl(t, "", "apply", "--server-side", "--force-conflicts", "-k", "deploy")
		env.Kubectl(t, "", "rollout", "status", "deployment", "-n", fixture.SystemNamespace, "--timeout=60s")
		run(t, manual, "kubectl delete -k deploy")
	})
}
