// Package imagegen_test shows on a real cluster what a user of ImageGen gets: refusals, pictures, scaling, rollouts.
package imagegen_test

import (
	"os"
	"slices"
	"testing"

	"imagegen.dev/tests/cluster/fixture"
)

var env *fixture.Env

func TestMain(m *testing.M) { os.Exit(fixture.Run(m, &env)) }

// installed are the chart values that the operator runs with now.
var installed = []string{"none yet"}

// operator installs the operator, or upgrades it when it runs with other values. Tests call it before t.Parallel, and one
// that needs other values is not parallel.
func operator(t *testing.T, values ...string) {
	t.Helper()
	if slices.Equal(installed, values) {
		return
	}
	env.InstallOperator(t, values...)
	installed = values
}
