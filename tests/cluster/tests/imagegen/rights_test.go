package imagegen_test

import (
	"strings"
	"testing"
	"time"

	"imagegen.dev/tests/cluster/fixture"
)

// Whoever may create an ImageGen must not get more than whoever may create a pod in the same, restricted namespace.
func TestAUserOfARestrictedNamespaceGetsNoMoreThanAPodWould(t *testing.T) {
	operator(t)
	t.Parallel()
	namespace := env.Namespace(t, "team-a", "restricted")
	other := env.Namespace(t, "team-b", "restricted")
	env.Kubectl(t, "", "create", "secret", "generic", "theirs", "-n", other, "--from-literal=token=of-team-b")
	env.Kubectl(t, "", "create", "rolebinding", "alice", "-n", namespace, "--clusterrole=edit", "--user=alice")
	apply := func(t *testing.T, fleet fixture.Fleet) {
		t.Helper()
		fleet.Replicas = 1
		env.Kubectl(t, env.Manifest(fleet), "apply", "-n", namespace, "--as=alice", "-f", "-")
	}

	refused := []struct {
		name, flag, field string
		fleet             fixture.Fleet
	}{
		{"model on a hostPath", "--allow-host-path", "hostPath", fixture.Fleet{Name: "host-model", Source: "{hostPath: {path: /etc}}"}},
		{"hostPath volume", "--allow-host-path", "volumes", fixture.Fleet{Name: "host-volume", PodTemplate: `
volumes: [{name: root, hostPath: {path: /}}]
volumeMounts: [{name: root, mountPath: /host}]`}},
		{"root by pod security context", "--allow-privileged-pods", "runAsUser", fixture.Fleet{Name: "root", PodTemplate: `
securityContext: {runAsUser: 0, runAsNonRoot: false}`}},
		{"root by init container", "--allow-privileged-pods", "initContainers", fixture.Fleet{Name: "root-init", PodTemplate: `
initContainers: [{name: i, image: "localhost/i:1", securityContext: {runAsUser: 0}}]`}},
		{"privileged init container", "--allow-privileged-pods", "privileged", fixture.Fleet{Name: "privileged-init", PodTemplate: `
initContainers: [{name: i, image: "localhost/i:1", securityContext: {privileged: true}}]`}},
		{"added capability", "--allow-privileged-pods", "capabilities", fixture.Fleet{Name: "capability", PodTemplate: `
initContainers: [{name: i, image: "localhost/i:1", securityContext: {capabilities: {add: [SYS_ADMIN]}}}]`}},
	}
	for _, c := range refused {
		t.Run(c.name, func(t *testing.T) {
			apply(t, c.fleet)
			object := env.WaitCondition(t, namespace, c.fleet.Name, "Ready", "False", "NotAllowed", 30*time.Second)
			message := fixture.ConditionOf(object, "Ready").Message
			if !strings.Contains(message, c.flag) || !strings.Contains(message, c.field) {
				t.Errorf("the condition must name %s and %s, it says: %s", c.field, c.flag, message)
			}
			if workers := env.Workers(t, namespace, c.fleet.Name); len(workers) > 0 {
				t.Errorf("there are %d workers", len(workers))
			}
		})
	}

	t.Run("a Secret of another namespace", func(t *testing.T) {
		apply(t, fixture.Fleet{Name: "thief", Spec: "  service: {auth: {allowInsecureToken: true, tokenSecretRef: {name: theirs}}}\n"})
		// The name means a Secret of their own namespace, and there is none: the kubelet waits for it.
		env.WaitCondition(t, namespace, "thief", "Ready", "False", "MountFailed", time.Minute)
	})

	t.Run("the operator reads no Secrets but its own", func(t *testing.T) {
		for request, expected := range map[string]string{"list secrets": "no", "watch secrets": "no", "list deployments": "yes"} {
			verb, resource, _ := strings.Cut(request, " ")
			out, _, _ := env.TryKubectl("", "auth", "can-i", verb, resource, "-n", other, "--as=system:serviceaccount:"+fixture.SystemNamespace+":imagegen-operator")
			if strings.TrimSpace(out) != expected {
				t.Errorf("may the operator %s in %s? %s, expected %s", request, other, out, expected)
			}
		}
	})

	t.Run("what is allowed works", func(t *testing.T) {
		apply(t, fixture.Fleet{Name: "honest", Script: "step_seconds: 0.01"})
		env.WaitReady(t, namespace, "honest", time.Minute)
		for _, pod := range env.Workers(t, namespace, "honest") {
			for _, volume := range pod.Spec.Volumes {
				if volume.Projected != nil {
					t.Errorf("the worker's pod has a projected volume %s: a service-account token", volume.Name)
				}
			}
		}
	})
}
