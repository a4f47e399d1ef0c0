// testcluster brings up a real single-node Kubernetes on this machine and takes it down again.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"imagegen.dev/tests/cluster/harness"
)

const usage = `testcluster: a real single-node Kubernetes on this machine, without a container engine.

  testcluster build                             build what the cluster consists of (6 to 12 minutes the first time)
  testcluster up     [--dir DIR] [--slot N]     bring it up, or do nothing when it is up; prints the kubeconfig's path
  testcluster load   [--dir DIR] IMAGE.tar...   import container images (docker-archive or oci-archive)
  testcluster gpus   [--dir DIR] COUNT          make the node offer that many nvidia.com/gpu, which do not exist
  testcluster status [--dir DIR]                what runs; exit status 1 when the cluster is not whole
  testcluster down   [--dir DIR] [--wipe]       stop it and undo its changes; --wipe removes the folder as well

up and down need root. Clusters in different folders run side by side, up to eight; --slot chooses the address ranges
(198.18.SLOT.0/24 for pods, 198.19.SLOT.0/24 for Services), by default the lowest free one.
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "testcluster:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	cache, err := harness.CacheDir()
	if err != nil {
		return err
	}
	command := args[0]
	flags := flag.NewFlagSet(command, flag.ExitOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	dir := flags.String("dir", filepath.Join(cache, "testcluster"), "the cluster's folder")
	slot := flags.Int("slot", -1, "the number of the cluster's address ranges")
	wipe := flags.Bool("wipe", false, "remove the folder as well")
	flags.Parse(args[1:])

	switch command {
	case "build":
		_, err := harness.Build(os.Stderr)
		return err
	case "up":
		cluster, err := harness.Up(*dir, *slot, os.Stderr)
		if err == nil {
			fmt.Println(cluster.Kubeconfig())
		}
		return err
	case "load", "gpus", "status", "down":
	case "help", "-h", "--help":
		fmt.Print(usage)
		return nil
	default:
		return fmt.Errorf("there is no command %q; `testcluster help` lists them", command)
	}

	cluster, err := harness.Open(*dir, os.Stderr)
	if command == "down" && errors.Is(err, harness.ErrNoCluster) {
		fmt.Fprintln(os.Stderr, err)
		return nil
	}
	if err != nil {
		return err
	}
	switch command {
	case "load":
		if flags.NArg() == 0 {
			return errors.New("load: name at least one image archive")
		}
		return cluster.Load(flags.Args()...)
	case "gpus":
		count, err := strconv.Atoi(flags.Arg(0))
		if err != nil || count < 0 {
			return fmt.Errorf("gpus: expected a number of devices, found %q", flags.Arg(0))
		}
		return cluster.SetGPUs(count)
	case "status":
		text, err := cluster.Status()
		fmt.Print(text)
		return err
	default:
		if err := cluster.Down(*wipe); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "the cluster in %s is down\n", cluster.Dir)
		return nil
	}
}
