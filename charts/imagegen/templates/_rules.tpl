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

{{/* What the operator may do in its own namespace only: the leader's Lease, the certificate authority and its client certificate. */}}
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
  resourceNames: [imagegen-operator-ca, imagegen-operator-client]
{{- end }}
