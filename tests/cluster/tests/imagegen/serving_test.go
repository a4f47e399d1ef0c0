package imagegen_test

import (
	"bytes"
	"fmt"
	"image/png"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"imagegen.dev/tests/cluster/fixture"
)

// One seed is one picture, wherever the model comes from and whoever asks.
const apple = `{"prompt": "a red apple", "width": 128, "height": 128, "seed": 7, "steps": 4}`

var firstApple struct {
	sync.Mutex
	png []byte
}

// sameApple compares with the picture that the first caller got.
func sameApple(t *testing.T, who string, picture []byte) {
	t.Helper()
	firstApple.Lock()
	defer firstApple.Unlock()
	if firstApple.png == nil {
		firstApple.png = picture
	}
	if !bytes.Equal(picture, firstApple.png) {
		t.Errorf("%s: the same request gave another picture than before", who)
	}
}

func TestServingFromAnImageVolume(t *testing.T) {
	operator(t)
	t.Parallel()
	namespace := env.Namespace(t, "from-image", "restricted")
	env.Kubectl(t, "", "apply", "-n", namespace, "-f", "deploy/examples/emoji.yaml")
	env.WaitReady(t, namespace, "emoji", 2*time.Minute)
	address := env.Address(t, namespace, "emoji")

	services := env.Grpcurl(t, address, "", "")
	for _, service := range []string{"imagegen.v1.ImageService", "grpc.health.v1.Health"} {
		if !strings.Contains(services, service) {
			t.Errorf("reflection does not list %s, only:\n%s", service, services)
		}
	}
	if health := env.Grpcurl(t, address, "grpc.health.v1.Health/Check", "{}"); !strings.Contains(health, `"SERVING"`) {
		t.Errorf("health says %s", health)
	}
	got := env.Generate(t, address, apple)
	if size := got.Images[0].Bounds().Size(); size.X != 128 || size.Y != 128 || got.Seeds[0] != 7 {
		t.Errorf("asked for 128x128 with seed 7, got %v with seed %d", size, got.Seeds[0])
	}
	if redness(t, got.PNGs[0]) < 0.02 {
		t.Error("a red apple has no red in it")
	}
	sameApple(t, "grpcurl", got.PNGs[0])
	sameApple(t, "Python", env.PythonGenerate(t, address, "a red apple", 128, 7))
	sameApple(t, "kubectl imagegen", env.PluginGenerate(t, namespace, "emoji", "a red apple", 128, 7))

	columns := strings.Fields(env.Kubectl(t, "", "get", "imagegen", "-n", namespace))
	if header := strings.Join(columns[:7], " "); header != "NAME READY DESIRED PRESSURE GPU MODEL AGE" {
		t.Errorf("kubectl get shows %s", header)
	}
}

func TestServingFromAClaim(t *testing.T) {
	operator(t)
	t.Parallel()
	namespace := env.Namespace(t, "from-claim", "restricted")
	env.Kubectl(t, volume(namespace, modelFolder()), "apply", "-f", "-")
	manifest := env.Manifest(fixture.Fleet{Name: "claimed", Replicas: 2, Source: "{persistentVolumeClaim: {claimName: models}}"})
	env.Kubectl(t, manifest, "apply", "--server-side", "-n", namespace, "-f", "-")
	env.WaitReady(t, namespace, "claimed", 2*time.Minute)
	if workers := env.Workers(t, namespace, "claimed"); len(workers) != 2 {
		t.Errorf("asked for 2 workers, found %d", len(workers))
	}
	sameApple(t, "model from a claim", env.Generate(t, env.Address(t, namespace, "claimed"), apple).PNGs[0])
	// The same again through client-side apply changes nothing but its bookkeeping.
	before := fixture.PodUIDs(env.Workers(t, namespace, "claimed"))
	env.Kubectl(t, manifest, "apply", "-n", namespace, "-f", "-")
	env.WaitReady(t, namespace, "claimed", time.Minute)
	if after := fixture.PodUIDs(env.Workers(t, namespace, "claimed")); after != before {
		t.Errorf("applying the same manifest replaced the workers: %s, then %s", before, after)
	}
}

// Not parallel: it changes what the operator allows.
func TestServingFromAFolderOfTheNodeOnceTheOperatorAllowsIt(t *testing.T) {
	operator(t)
	// Pod Security refuses hostPath volumes at every level but this one.
	namespace := env.Namespace(t, "from-host", "privileged")
	manifest := env.Manifest(fixture.Fleet{Name: "local", Replicas: 1, Source: fmt.Sprintf("{hostPath: {path: %q}}", modelFolder())})
	env.Kubectl(t, manifest, "apply", "-n", namespace, "-f", "-")
	env.WaitCondition(t, namespace, "local", "Ready", "False", "NotAllowed", 30*time.Second)
	operator(t, "allowHostPath=true")
	defer operator(t)
	env.WaitReady(t, namespace, "local", 2*time.Minute)
	sameApple(t, "model from the node", env.Generate(t, env.Address(t, namespace, "local"), apple).PNGs[0])
}

// modelFolder is the demo model as a folder of the node: the one in the checkout.
func modelFolder() string { return filepath.Join(env.Root, "tests/models/emoji-zimage") }

// redness is the share of pixels that are clearly red.
func redness(t *testing.T, data []byte) float64 {
	t.Helper()
	picture, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	red, bounds := 0, picture.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			r, g, b, _ := picture.At(x, y).RGBA()
			if r > 0x8000 && r > 2*g && r > 2*b {
				red++
			}
		}
	}
	return float64(red) / float64(bounds.Dx()*bounds.Dy())
}

// volume is a claim that many pods can read, bound to a folder of the node.
func volume(namespace, folder string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: PersistentVolume
metadata: {name: models-%[1]s}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadOnlyMany]
  storageClassName: ""
  hostPath: {path: %[2]q}
  claimRef: {namespace: %[1]s, name: models}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: models, namespace: %[1]s}
spec:
  accessModes: [ReadOnlyMany]
  storageClassName: ""
  volumeName: models-%[1]s
  resources: {requests: {storage: 1Gi}}
`, namespace, folder)
}

func TestScalingByHand(t *testing.T) {
	operator(t)
	t.Parallel()
	namespace := env.Namespace(t, "scaling", "restricted")
	env.Kubectl(t, env.Manifest(fixture.Fleet{Name: "many", Replicas: 1, Script: "step_seconds: 0.01"}), "apply", "-n", namespace, "-f", "-")
	env.WaitReady(t, namespace, "many", time.Minute)
	for _, replicas := range []int64{3, 1} {
		env.Kubectl(t, "", "scale", "imagegen", "many", "-n", namespace, fmt.Sprintf("--replicas=%d", replicas))
		fixture.Eventually(t, fmt.Sprintf("%d workers", replicas), time.Minute, func() (bool, string) {
			object := env.ImageGen(t, namespace, "many")
			ready, _, _ := unstructured.NestedInt64(object.Object, "status", "readyReplicas")
			all, _, _ := unstructured.NestedInt64(object.Object, "status", "replicas")
			pods := int64(len(env.Workers(t, namespace, "many")))
			return pods == replicas && ready == replicas && all == replicas,
				fmt.Sprintf("%d pods, status.replicas %d, status.readyReplicas %d", pods, all, ready)
		})
		env.WaitReady(t, namespace, "many", 30*time.Second)
	}
}

func TestMoreWorkersThanGPUs(t *testing.T) {
	operator(t)
	t.Parallel()
	if err := env.Cluster.SetGPUs(1); err != nil {
		t.Fatal(err)
	}
	namespace := env.Namespace(t, "gpus", "restricted")
	// The scripted engine needs no GPU, but its pods ask for one all the same.
	env.Kubectl(t, env.Manifest(fixture.Fleet{Name: "gpus", Device: "Cuda", Replicas: 2, Script: "step_seconds: 0.01"}), "apply", "-n", namespace, "-f", "-")
	object := env.WaitCondition(t, namespace, "gpus", "Degraded", "True", "Unschedulable", time.Minute)
	if message := fixture.ConditionOf(object, "Degraded").Message; !strings.Contains(message, "Insufficient nvidia.com/gpu") {
		t.Errorf("the condition does not say what is missing: %s", message)
	}
	env.WaitCondition(t, namespace, "gpus", "Available", "True", "", time.Minute)
	env.Kubectl(t, "", "scale", "imagegen", "gpus", "-n", namespace, "--replicas=1")
	env.WaitReady(t, namespace, "gpus", time.Minute)
}

func TestAWorkerThatCannotLoadSaysWhy(t *testing.T) {
	operator(t)
	t.Parallel()
	namespace := env.Namespace(t, "broken", "restricted")
	env.Kubectl(t, env.Manifest(fixture.Fleet{Name: "broken", Replicas: 1, Script: "load_fault: shard 3 of 7 is missing"}), "apply", "-n", namespace, "-f", "-")
	object := env.WaitCondition(t, namespace, "broken", "Degraded", "True", "CrashLoopBackOff", time.Minute)
	if message := fixture.ConditionOf(object, "Degraded").Message; !strings.Contains(message, "the model could not be loaded: shard 3 of 7 is missing") {
		t.Errorf("the condition does not say why: %s", message)
	}
}
