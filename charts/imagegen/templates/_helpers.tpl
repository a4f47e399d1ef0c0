{{- define "imagegen.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "imagegen.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "imagegen.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "imagegen.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "imagegen.operatorName" -}}
{{- include "imagegen.fullname" . }}-operator
{{- end }}

{{- define "imagegen.serviceAccountName" -}}
{{- default (include "imagegen.operatorName" .) .Values.serviceAccount.name }}
{{- end }}

{{/* Whether the operator may put its metrics API into the cluster. */}}
{{- define "imagegen.hasMetricsAPI" -}}
{{- if or (not .Values.watchNamespaces) .Values.metricsAPI.clusterRBAC }}yes{{ end }}
{{- end }}

{{- define "imagegen.selectorLabels" -}}
app.kubernetes.io/name: imagegen-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "imagegen.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "imagegen.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: imagegen
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The reference of an image: a dict of image (repository, tag, digest) and defaultTag. */}}
{{- define "imagegen.imageReference" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .defaultTag .image.tag }}
{{- end }}
{{- end }}
