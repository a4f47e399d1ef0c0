#!/usr/bin/env bash
# Tests the chart and the plain manifests without a cluster, with helm 4 and helm 3: lint, what is rendered, what is refused.
. "$(dirname "$0")/lib.sh"

chart=$ROOT/charts/imagegen
for tool in helm helm3 kubectl promtool; do
    command -v "$tool" >/dev/null || die "$tool is missing: run make test-tools first"
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
checks=0

fail() { echo "FAIL $*" >&2; failures=$((failures + 1)); }
# check NAME COMMAND...
check() {
    checks=$((checks + 1))
    local name=$1
    shift
    "$@" >"$work/output" 2>&1 || { fail "$name"; head -20 "$work/output" >&2; }
}

render() { "$helm" template imagegen "$chart" --namespace imagegen-system "$@"; }

# refused EXPECTED VALUES...: rendering must fail and say EXPECTED.
refused() {
    checks=$((checks + 1))
    local expected=$1
    shift
    if render "$@" >"$work/output" 2>&1; then
        fail "helm $version accepts $*"
    elif ! grep -qF -- "$expected" "$work/output"; then
        fail "helm $version refuses $* without saying \"$expected\":"
        head -5 "$work/output" >&2
    fi
}

# has NAME TEXT, lacks NAME TEXT: about the manifests in $work/NAME. One line each, leading spaces ignored.
has() { checks=$((checks + 1)); sed 's/^ *//' "$work/$1" | grep -xF -- "$2" >/dev/null || fail "helm $version, $1: no line \"$2\""; }
lacks() { checks=$((checks + 1)); ! sed 's/^ *//' "$work/$1" | grep -xF -- "$2" >/dev/null || fail "helm $version, $1: has the line \"$2\""; }
count() { checks=$((checks + 1)); [ "$(grep -cxF -- "$2" "$work/$1")" = "$3" ] || fail "helm $version, $1: \"$2\" not $3 times"; }

# Strict parsing, unique names, resolvable references: what kustomize checks without a cluster.
parse() {
    mkdir -p "$work/kustomize"
    cp "$work/$1" "$work/kustomize/manifests.yaml"
    printf 'resources: [manifests.yaml]\n' >"$work/kustomize/kustomization.yaml"
    kubectl kustomize "$work/kustomize"
}

for helm in "$CACHE/bin/helm" "$CACHE/bin/helm3"; do
    version=$("$helm" version --template '{{.Version}}')
    for values in defaults namespaced everything; do
        arguments=()
        [ "$values" = defaults ] || arguments=(--values "$chart/ci/$values-values.yaml")
        check "helm $version lint $values" "$helm" lint --strict "$chart" ${arguments[@]+"${arguments[@]}"}
        render ${arguments[@]+"${arguments[@]}"} >"$work/$values"
        check "helm $version: $values parses" parse "$values"
    done

    # The definition: kept on uninstall, otherwise word for word that of deploy/crd.yaml.
    render --show-only templates/crd.yaml >"$work/crd"
    count crd "    helm.sh/resource-policy: keep" 1
    check "helm $version: the chart's definition is deploy/crd.yaml" \
        diff <(grep -vE '^(---|# Source: .*|    helm.sh/resource-policy: keep)$' "$work/crd" | sed -e '/^$/d' -e '0,/^  annotations:$/{/^  annotations:$/d}') \
        <(sed '/^$/d' "$ROOT/deploy/crd.yaml")
    lacks namespaced "kind: CustomResourceDefinition"

    # Rights: everywhere with a ClusterRole, or in listed namespaces only. Nobody lists Secrets.
    count defaults "kind: ClusterRole" 5
    count defaults "kind: Role" 1
    count namespaced "kind: ClusterRole" 0
    count namespaced "kind: ClusterRoleBinding" 0
    count namespaced "kind: Role" 3
    render --values "$chart/ci/namespaced-values.yaml" --set metricsAPI.clusterRBAC=true >"$work/namespaced-hpa"
    count namespaced-hpa "kind: ClusterRole" 1
    has namespaced-hpa "value: imagegen-operator-metrics-api"
    for values in defaults namespaced-hpa; do
        has "$values" "- name: metrics-api"
        has "$values" "namespace: kube-system"
    done
    lacks namespaced "- name: metrics-api"
    lacks namespaced "- name: IMAGEGEN_METRICS_API_CLUSTER_ROLE"
    has namespaced "- name: keda"
    has namespaced "namespace: team-a"
    has namespaced "value: \"team-a,team-b\""
    lacks defaults "- name: IMAGEGEN_WATCH_NAMESPACES"
    check "helm $version: no right to list Secrets" \
        awk '/resources: .*secrets/ { getline; if (/list|watch|\*/) bad = 1; seen = 1 } END { exit bad || !seen }' "$work/defaults"

    # Hardening that no value of the tests switches off.
    for values in defaults namespaced everything; do
        has "$values" "runAsNonRoot: true"
        has "$values" "readOnlyRootFilesystem: true"
        has "$values" "allowPrivilegeEscalation: false"
        has "$values" "type: RuntimeDefault"
    done
    count defaults "kind: PodDisruptionBudget" 0
    count everything "kind: PodDisruptionBudget" 1
    count everything "kind: ServiceMonitor" 1
    for kind in PodMonitor PrometheusRule; do
        count defaults "kind: $kind" 0
        count everything "kind: $kind" 1
    done
    lacks defaults "grafana_dashboard: \"1\""
    has everything "grafana_dashboard: \"1\""
    check "helm $version: the chart's rules are deploy/prometheusrule.yaml" \
        diff <(render --set prometheusRule.enabled=true --show-only templates/prometheusrule.yaml | sed -n '/^spec:/,$p') \
        <(sed -n '/^spec:/,$p' "$ROOT/deploy/prometheusrule.yaml")
    has everything "image: registry.example:5000/team/imagegen-operator@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    has everything "value: registry.example:5000/team/imagegen-worker:0.1.0-cpu"
    has everything "name: pictures-operator"
    has everything "- name: HTTPS_PROXY"

    # Wrong values are refused with the field's name, not ignored.
    refused "imagPullSecrets" --set 'imagPullSecrets[0].name=x'
    refused "replicas" --set image.replicas=3
    refused "/replicaCount" --set replicaCount=two
    refused "/replicaCount" --set replicaCount=-1
    refused "/image/pullPolicy" --set image.pullPolicy=Sometimes
    refused "/image/digest" --set image.digest=sha256:short
    refused "/image/tag" --set-string 'image.tag=a b'
    refused "/log/format" --set log.format=xml
    refused "/watchNamespaces/0" --set 'watchNamespaces={Team_A}'
    refused "/metricsAPI/clusterRBAC" --set-string metricsAPI.clusterRBAC=yes
    refused "/allowHostPath" --set-string allowHostPath=yes
    refused "/leaderElection/leaseDuration" --set leaderElection.leaseDuration=15
    refused "/concurrency" --set concurrency=0
    refused "/extraEnv/0/name" --set 'extraEnv[0].name=IMAGEGEN_LOG' --set 'extraEnv[0].value=debug'
    refused "/serviceAccount/name" --set serviceAccount.create=false
    refused "/networkPolicy/egress/apiServerPorts/0" --set 'networkPolicy.egress.apiServerPorts={0}'
    refused "/nodeSelector/gpu" --set nodeSelector.gpu=true
    refused "kubeVersion: >=1.33.0-0" --kube-version 1.32.5

    # One version everywhere.
    crate=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
    check "Chart.yaml has the workspace's version $crate" grep -qx "version: $crate" "$chart/Chart.yaml"
    check "Chart.yaml has the workspace's version $crate as appVersion" grep -qx "appVersion: $crate" "$chart/Chart.yaml"
done

# A line "key: value" follows a comment, but for the inner lines of free-form blocks, which their own key explains.
# shellcheck disable=SC2016 # awk's own variables
check "every value has a comment" awk '
    /^ *#/ { commented = 1; free = 0; next }
    /^(resources|podSecurityContext|securityContext|topologySpreadConstraints):$/ { free = 1 }
    /^[^ ]/ && !/:$/ { free = 0 }
    /^ *[a-zA-Z]+: / && !commented && !free { print FILENAME ":" FNR ": no comment on " $0; bad = 1 }
    { commented = 0 }
    END { exit bad }' "$chart/values.yaml"

check "alerts: promtool check rules" promtool check rules --lint-fatal "$ROOT/deploy/alerts.yaml"
check "alerts: promtool test rules" promtool test rules "$ROOT/deploy/alerts_test.yaml"
check "generated files" "$ROOT/deploy/scripts/generate.sh" --check
check "kubectl kustomize deploy" kubectl kustomize "$ROOT/deploy"

echo "charts: $checks checks, $failures failed"
[ "$failures" = 0 ]
