package imagegen_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every file of testdata/bad begins with the sentence that its user must see. Where it has several documents, all but
// the last are accepted: the last is a change that is not.
func TestBadManifestsAreRefusedWithASentence(t *testing.T) {
	operator(t)
	t.Parallel()
	namespace := env.Namespace(t, "bad", "restricted")
	files, err := filepath.Glob("../../testdata/bad/*.yaml")
	if err != nil || len(files) < 20 {
		t.Fatalf("expected at least 20 bad manifests, found %d (%v)", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			comment, manifest, _ := strings.Cut(string(text), "\n")
			sentence, found := strings.CutPrefix(comment, "# expect: ")
			if !found {
				t.Fatalf("the first line must be `# expect: SENTENCE`, found %q", comment)
			}
			documents := strings.Split(manifest, "\n---\n")
			for _, accepted := range documents[:len(documents)-1] {
				env.Kubectl(t, accepted, "apply", "-n", namespace, "-f", "-")
			}
			out, complaint, err := env.TryKubectl(documents[len(documents)-1], "apply", "-n", namespace, "-f", "-")
			if err == nil {
				t.Fatalf("it was accepted: %s", out)
			}
			if !strings.Contains(complaint, sentence) {
				t.Errorf("expected %q, the user sees:\n%s", sentence, complaint)
			}
		})
	}
}

func TestExplainIsTheManual(t *testing.T) {
	operator(t)
	t.Parallel()
	for _, field := range []string{"imagegen.spec.worker.buckets", "imagegen.spec.model.source", "imagegen.status"} {
		if out := env.Kubectl(t, "", "explain", field); strings.Contains(out, "<empty>") {
			t.Errorf("%s has no description:\n%s", field, out)
		}
	}
}
