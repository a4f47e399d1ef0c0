#!/usr/bin/env bash
# Makes the generated files of the chart and of `kubectl apply -k deploy` from their sources:
#   charts/imagegen/files/crd.yaml   deploy/crd.yaml (itself printed by `imagegen-operator crd`)
#   charts/imagegen/files/alerts.yaml, deploy/prometheusrule.yaml    deploy/alerts.yaml
#   charts/imagegen/files/dashboard.json                             deploy/grafana-dashboard.json
#   deploy/operator.yaml             the chart with its default values
#   docs/install.md                  its table of values, from charts/imagegen/values.yaml
# With --check: changes nothing, and fails when a committed file differs.
. "$(dirname "$0")/lib.sh"

helm=${HELM:-$CACHE/bin/helm}
check=no
[ "${1:-}" = --check ] && check=yes
[ -x "$helm" ] || die "no helm at $helm: run deploy/scripts/fetch-helm.sh, or set HELM"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The plain manifests say nothing of Helm: no test hook, no chart label.
operator_manifests() {
    echo "# Generated from charts/imagegen by deploy/scripts/generate.sh; change the chart."
    "$helm" template imagegen "$ROOT/charts/imagegen" --namespace imagegen-system --set crds.install=false --skip-tests \
        | sed -e '/^# Source: /d' -e '/^ *helm.sh\/chart: /d' -e '/^ *app.kubernetes.io\/managed-by: Helm$/d'
}

# The same groups as an object of the Prometheus Operator.
prometheus_rule() {
    echo "# Generated from deploy/alerts.yaml by deploy/scripts/generate.sh."
    printf 'apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata: {name: imagegen, labels: {app.kubernetes.io/part-of: imagegen}}\nspec:\n'
    sed -e '/^#/d' -e 's/^\(.\)/  \1/' "$ROOT/deploy/alerts.yaml"
}

install_document() {
    local page=$ROOT/docs/install.md
    sed '/^<!-- generated from charts/q' "$page"
    printf '| value | default | |\n| --- | --- | --- |\n'
    awk -f "$ROOT/deploy/scripts/values-table.awk" "$ROOT/charts/imagegen/values.yaml"
    sed -n '/^<!-- end of generated text/,$p' "$page"
}

failed=0
# put FILE: standard input is what FILE has to hold.
put() {
    cat >"$work/new"
    if [ "$check" = no ]; then
        cmp -s "$work/new" "$ROOT/$1" || { cp "$work/new" "$ROOT/$1" && note "wrote $1"; }
    elif ! diff -u "$ROOT/$1" "$work/new" >"$work/diff"; then
        echo "generate: $1 is not what its source gives; run deploy/scripts/generate.sh and commit it:" >&2
        head -40 "$work/diff" >&2
        failed=1
    fi
}

put charts/imagegen/files/crd.yaml <"$ROOT/deploy/crd.yaml"
put charts/imagegen/files/alerts.yaml <"$ROOT/deploy/alerts.yaml"
put charts/imagegen/files/dashboard.json <"$ROOT/deploy/grafana-dashboard.json"
prometheus_rule | put deploy/prometheusrule.yaml
operator_manifests | put deploy/operator.yaml
install_document | put docs/install.md
exit "$failed"
