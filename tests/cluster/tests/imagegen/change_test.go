package imagegen_test

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"imagegen.dev/tests/cluster/fixture"
)

func TestRolloutLetsARunningRequestFinish(t *testing.T) {
	operator(t)
	t.Parallel()
	namespace := env.Namespace(t, "rollout", "restricted")
	env.Kubectl(t, env.Manifest(fixture.Fleet{Name: "slow", Replicas: 1, Script: "step_seconds: 0.2"}), "apply", "-n", namespace, "-f", "-")
	env.WaitReady(t, namespace, "slow", time.Minute)
	address := env.Address(t, namespace, "slow")
	before := env.Workers(t, namespace, "slow")

	// 40 steps of 0.2 s: longer than a new worker needs to be ready.
	running := env.StartGenerate(address, `{"prompt": "a slow one", "width": 64, "height": 64, "steps": 40}`)
	running.WaitRunning(t, 30*time.Second)
	env.Kubectl(t, "", "patch", "imagegen", "slow", "-n", namespace, "--type=merge", "-p", `{"spec": {"worker": {"queue": {"capacity": 7}}}}`)
	fixture.Eventually(t, "the worker to be replaced", time.Minute, func() (bool, string) {
		pods := env.Workers(t, namespace, "slow")
		return len(pods) == 1 && pods[0].UID != before[0].UID, fixture.PodUIDs(pods)
	})
	if running.Finished() {
		t.Error("the request ended before its worker was told to stop: this test shows nothing")
	}
	got, err := running.Wait(time.Minute)
	if err != nil {
		t.Fatalf("the rollout cut a running request off: %v", err)
	}
	if len(got.Images) != 1 {
		t.Errorf("asked for one picture, got %d", len(got.Images))
	}
	env.WaitReady(t, namespace, "slow", time.Minute)
	if model := env.Grpcurl(t, address, "imagegen.v1.ImageService/GetModel", "{}"); !strings.Contains(model, `"queueCapacity": 7`) {
		t.Errorf("the new worker does not have the new capacity:\n%s", model)
	}
}

func TestDeletingLeavesNothing(t *testing.T) {
	operator(t)
	t.Parallel()
	namespace := env.Namespace(t, "deleting", "restricted")
	list := func() string {
		out := env.Kubectl(t, "", "get", "-n", namespace, "-o", "name", "deployments,replicasets,pods,services,endpointslices,"+
			"configmaps,secrets,poddisruptionbudgets,networkpolicies,leases")
		return strings.TrimSpace(strings.ReplaceAll(out, "configmap/kube-root-ca.crt\n", ""))
	}
	env.Kubectl(t, env.Manifest(fixture.Fleet{Name: "brief", Replicas: 1, PodTemplate: "labels: {team: a}"}), "apply", "-n", namespace, "-f", "-")
	env.WaitReady(t, namespace, "brief", 2*time.Minute)
	there := list()
	for _, child := range []string{
		"deployment.apps/brief", "service/brief", "service/brief-headless", "configmap/brief-worker", "secret/brief-admin-tls",
		"poddisruptionbudget.policy/brief", "networkpolicy.networking.k8s.io/brief",
	} {
		if !strings.Contains(there+"\n", child+"\n") {
			t.Errorf("%s is missing; there are:\n%s", child, there)
		}
	}
	env.Kubectl(t, "", "delete", "imagegen", "brief", "-n", namespace, "--wait=false")
	fixture.Eventually(t, "everything of the ImageGen to be gone", time.Minute, func() (bool, string) {
		left := list()
		return left == "", left
	})
}

func TestAForeignDeploymentOfTheSameNameIsLeftAlone(t *testing.T) {
	operator(t)
	t.Parallel()
	namespace := env.Namespace(t, "conflict", "restricted")
	env.Kubectl(t, "", "create", "deployment", "taken", "-n", namespace, "--image=localhost/somebody-elses:1", "--replicas=0")
	// The generation changes with the spec and with nothing else.
	foreign := func() (uid string, generation int64) {
		deployment, err := env.Client.AppsV1().Deployments(namespace).Get(t.Context(), "taken", v1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return string(deployment.UID), deployment.Generation
	}
	uid, generation := foreign()
	env.Kubectl(t, env.Manifest(fixture.Fleet{Name: "taken", Replicas: 1, Script: "step_seconds: 0.01"}), "apply", "-n", namespace, "-f", "-")
	object := env.WaitCondition(t, namespace, "taken", "Ready", "False", "NameConflict", 30*time.Second)
	if message := fixture.ConditionOf(object, "Ready").Message; !strings.Contains(message, "Deployment taken") {
		t.Errorf("the condition does not name the Deployment: %s", message)
	}
	if newUID, newGeneration := foreign(); newUID != uid || newGeneration != generation {
		t.Error("the foreign Deployment was changed")
	}
	env.Kubectl(t, "", "delete", "deployment", "taken", "-n", namespace)
	env.WaitReady(t, namespace, "taken", time.Minute)
	if newUID, _ := foreign(); newUID == uid {
		t.Error("the Deployment is still the foreign one")
	}
}

func TestAClaimOfOneNodeIsRefusedForTwoWorkers(t *testing.T) {
	operator(t)
	t.Parallel()
	namespace := env.Namespace(t, "single", "restricted")
	fleet := fixture.Fleet{Name: "single", Replicas: 2, Source: "{persistentVolumeClaim: {claimName: models}}"}
	env.Kubectl(t, env.Manifest(fleet), "apply", "-n", namespace, "-f", "-")
	env.WaitCondition(t, namespace, "single", "Ready", "False", "ClaimNotFound", 30*time.Second)
	env.Kubectl(t, strings.ReplaceAll(volume(namespace, modelFolder()), "ReadOnlyMany", "ReadWriteOnce"), "apply", "-f", "-")
	env.WaitCondition(t, namespace, "single", "Ready", "False", "ClaimNotShareable", time.Minute)
	env.Kubectl(t, "", "scale", "imagegen", "single", "-n", namespace, "--replicas=1")
	env.WaitReady(t, namespace, "single", time.Minute)
}
