{{/* What the operator may do in every namespace it watches. Secrets cannot be listed, watched or deleted: it gets its own by name. */}}
{{- define "imagegen.reconcileRules" -}}
- apiGroups: [imagegen.dev]
  resources: [imagegens]
  verbs: [get, list, watch]
- apiGroups: [imagegen.dev]
  resources: [imagegens/status]
  verbs: [patch]
# Owner references that block deletion need it where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [imagegen.dev]
  resources: [imagegens/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
# The certificate of each ImageGen's admin port.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# Access modes of the model's claim.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
# Why a pod does not start.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/* What the operator may do in its own namespace only: the leader's Lease, the certificate authority and its own certificates. */}}
{{- define "imagegen.ownNamespaceRules" -}}
# Creating cannot be limited by name.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, update]
  resourceNames: [{{ include "imagegen.operatorName" . }}]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, patch]
  resourceNames: [imagegen-operator-ca, imagegen-operator-client, imagegen-operator-serving]
{{- end }}

{{/* What the metrics API needs in the whole cluster. It is made by server-side apply, so that creating is limited by name, too. */}}
{{- define "imagegen.metricsAPIRules" -}}
- apiGroups: [apiregistration.k8s.io]
  resources: [apiservices]
  verbs: [get, create, patch, delete]
  resourceNames: [v1beta2.custom.metrics.k8s.io]
# Whether somebody else serves the group.
- apiGroups: [apiregistration.k8s.io]
  resources: [apiservices]
  verbs: [list]
# Whether a caller may read a metric.
- apiGroups: [authorization.k8s.io]
  resources: [subjectaccessreviews]
  verbs: [create]
# The owner of the APIService: this role, so that it goes with the chart.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterroles]
  verbs: [get]
  resourceNames: [{{ include "imagegen.operatorName" . }}-metrics-api]
{{- end }}
