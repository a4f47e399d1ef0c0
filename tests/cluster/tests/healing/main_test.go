// Package healing_test kills what the product depends on and watches it heal.
package healing_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"imagegen.dev/tests/cluster/fixture"
	"imagegen.dev/tests/cluster/harness"
)

var env *fixture.Env

func TestMain(m *testing.M) { os.Exit(fixture.Run(m, &env)) }

const request = `{"prompt": "anything", "width": 64, "height": 64, "steps": 2}`

// fleet makes one worker that follows a script.
func fleet(t *testing.T, namespace string) (address string) {
	t.Helper()
	env.Kubectl(t, env.Manifest(fixture.Fleet{Name: "fleet", Replicas: 1, Script: "step_seconds: 0.01"}), "apply", "-n", namespace, "-f", "-")
	env.WaitReady(t, namespace, "fleet", time.Minute)
	return env.Address(t, namespace, "fleet")
}

// kill ends the first container of a pod as a crash would.
func kill(t *testing.T, pod core.Pod) {
	t.Helper()
	pid, err := env.Cluster.ContainerPid(pod.Status.ContainerStatuses[0].ContainerID)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// waitRestarted waits until a pod's container runs again after a kill.
func waitRestarted(t *testing.T, pod core.Pod) {
	t.Helper()
	fixture.Eventually(t, pod.Name+" to restart", time.Minute, func() (bool, string) {
		now, err := env.Client.CoreV1().Pods(pod.Namespace).Get(t.Context(), pod.Name, v1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		status := now.Status.ContainerStatuses[0]
		return status.RestartCount == pod.Status.ContainerStatuses[0].RestartCount+1 && status.Ready,
			fmt.Sprintf("%d restarts, ready: %t", status.RestartCount, status.Ready)
	})
}

func operators(t *testing.T) []core.Pod {
	t.Helper()
	list, err := env.Client.CoreV1().Pods(fixture.SystemNamespace).List(t.Context(), v1.ListOptions{LabelSelector: "app.kubernetes.io/name=imagegen-operator"})
	if err != nil {
		t.Fatal(err)
	}
	var running []core.Pod
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil {
			running = append(running, pod)
		}
	}
	return running
}

func TestWorkerKilled(t *testing.T) {
	env.InstallOperator(t, "replicaCount=1")
	namespace := env.Namespace(t, "worker-killed", "restricted")
	address := fleet(t, namespace)
	worker := env.Workers(t, namespace, "fleet")[0]
	kill(t, worker)
	waitRestarted(t, worker)
	env.WaitReady(t, namespace, "fleet", time.Minute)
	env.Generate(t, address, request)
}

func TestOperatorKilled(t *testing.T) {
	env.InstallOperator(t, "replicaCount=1")
	namespace := env.Namespace(t, "operator-killed", "restricted")
	address := fleet(t, namespace)
	workers := fixture.PodUIDs(env.Workers(t, namespace, "fleet"))
	operator := operators(t)[0]
	kill(t, operator)
	// Nothing of what users see depends on it.
	env.Generate(t, address, request)
	env.Kubectl(t, "", "scale", "imagegen", "fleet", "-n", namespace, "--replicas=2")
	waitRestarted(t, operator)
	fixture.Eventually(t, "the second worker", time.Minute, func() (bool, string) {
		now := fixture.PodUIDs(env.Workers(t, namespace, "fleet"))
		return strings.Count(now, "/") == 2 && strings.Contains(now, workers), now
	})
	env.WaitReady(t, namespace, "fleet", time.Minute)
}

func TestKubeletKilled(t *testing.T) {
	env.InstallOperator(t, "replicaCount=1")
	namespace := env.Namespace(t, "kubelet-killed", "restricted")
	address := fleet(t, namespace)
	workers := fixture.PodUIDs(env.Workers(t, namespace, "fleet"))
	nodeReady := func() (core.ConditionStatus, string) {
		node, err := env.Client.CoreV1().Nodes().Get(t.Context(), harness.NodeName, v1.GetOptions{})
		if err != nil {
			return core.ConditionUnknown, err.Error()
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == core.NodeReady {
				return condition.Status, condition.Reason
			}
		}
		return core.ConditionUnknown, "no condition"
	}

	if err := syscall.Kill(env.Cluster.Pid("kubelet"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Also when the test fails half-way: the tests after it need a node.
		if err := env.Cluster.StartComponent("kubelet"); err != nil {
			t.Error(err)
		}
	})
	env.Generate(t, address, request)
	fixture.Eventually(t, "the node to be missed", time.Minute, func() (bool, string) {
		status, reason := nodeReady()
		return status != core.ConditionTrue, reason
	})
	env.WaitCondition(t, namespace, "fleet", "Ready", "False", "", time.Minute)

	if err := env.Cluster.StartComponent("kubelet"); err != nil {
		t.Fatal(err)
	}
	fixture.Eventually(t, "the node to be back", time.Minute, func() (bool, string) {
		status, reason := nodeReady()
		return status == core.ConditionTrue, reason
	})
	env.WaitReady(t, namespace, "fleet", time.Minute)
	if now := fixture.PodUIDs(env.Workers(t, namespace, "fleet")); now != workers {
		t.Errorf("the worker did not survive its kubelet: %s, then %s", workers, now)
	}
	env.Generate(t, address, request)
}

func TestTwoOperatorsHaveOneLeader(t *testing.T) {
	env.InstallOperator(t, "replicaCount=2")
	namespace := env.Namespace(t, "two-operators", "restricted")
	pods := map[string]core.Pod{}
	fixture.Eventually(t, "two operators", time.Minute, func() (bool, string) {
		clear(pods)
		for _, pod := range operators(t) {
			pods[pod.Name] = pod
		}
		return len(pods) == 2, fmt.Sprint(len(pods))
	})
	holder := func() string {
		lease, err := env.Client.CoordinationV1().Leases(fixture.SystemNamespace).Get(t.Context(), "imagegen-operator", v1.GetOptions{})
		if err != nil || lease.Spec.HolderIdentity == nil {
			return ""
		}
		return *lease.Spec.HolderIdentity
	}
	var leader string
	fixture.Eventually(t, "one of them to lead", time.Minute, func() (bool, string) {
		leader = holder()
		_, known := pods[leader]
		return known, leader
	})
	fleet(t, namespace)
	leaders := 0
	for name := range pods {
		metrics := env.Kubectl(t, "", "get", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:9102/proxy/metrics", fixture.SystemNamespace, name))
		for line := range strings.Lines(metrics) {
			if strings.HasPrefix(line, "imagegen_operator_leader") && strings.HasSuffix(strings.TrimSpace(line), " 1") {
				leaders++
			}
		}
	}
	if leaders != 1 {
		t.Errorf("%d of the two operators say that they lead", leaders)
	}

	// Not killed in place: its container would be back before the Lease ends, under the same name, and lead on.
	env.Kubectl(t, "", "delete", "pod", leader, "-n", fixture.SystemNamespace, "--grace-period=0", "--force")
	// The other, or the one that replaces it: whoever asks first once the Lease has ended.
	fixture.Eventually(t, "another to lead", time.Minute, func() (bool, string) {
		now := holder()
		running := slices.ContainsFunc(operators(t), func(pod core.Pod) bool { return pod.Name == now })
		return running && now != leader, now
	})
	env.Kubectl(t, "", "scale", "imagegen", "fleet", "-n", namespace, "--replicas=2")
	fixture.Eventually(t, "the new leader to act", time.Minute, func() (bool, string) {
		workers := len(env.Workers(t, namespace, "fleet"))
		return workers == 2, fmt.Sprintf("%d workers", workers)
	})
}
