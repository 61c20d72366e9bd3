{{/* Every name is spelled here, once. */}}

{{- define "fedpipe.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* The release, for what is in its namespace or in one of a run. */}}
{{- define "fedpipe.fullname" -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name (include "fedpipe.name" .)) (contains (include "fedpipe.name" .) .Release.Name) }}
{{- .Values.fullnameOverride | default $both | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* The release among those of all namespaces, for what is in none. */}}
{{- define "fedpipe.clusterName" -}}
{{ printf "%s-%s" .Release.Namespace (include "fedpipe.fullname" .) }}
{{- end }}

{{- define "fedpipe.nodeReader" -}}
{{ include "fedpipe.clusterName" . }}-nodes
{{- end }}

{{- define "fedpipe.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "fedpipe.fullname" .) }}
{{- end }}

{{/* Image by digest, else by tag. Given the chart's context and the image's values. */}}
{{- define "fedpipe.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 }}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "fedpipe.selector" -}}
app.kubernetes.io/name: {{ include "fedpipe.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "fedpipe.labels" -}}
{{ include "fedpipe.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The operator's service account, as a binding names it. */}}
{{- define "fedpipe.subjects" -}}
- kind: ServiceAccount
  name: {{ include "fedpipe.serviceAccount" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{/* Each setting of the operator as the variable that it reads. */}}
{{- define "fedpipe.environment" -}}
{{- $secrets := list }}{{- range .Values.imagePullSecrets }}{{ $secrets = append $secrets .name }}{{ end -}}
- name: FEDPIPE_OPERATOR_IMAGE
  value: {{ include "fedpipe.image" (list . .Values.operatorImage) | quote }}
- name: FEDPIPE_TRAINER_IMAGE
  value: {{ include "fedpipe.image" (list . .Values.trainerImage) | quote }}
- name: FEDPIPE_IMAGE_PULL_POLICY
  value: {{ .Values.imagePullPolicy | quote }}
- name: FEDPIPE_IMAGE_PULL_SECRETS
  value: {{ join "," $secrets | quote }}
- name: FEDPIPE_NAMESPACES
  value: {{ join "," .Values.namespaces | quote }}
- name: FEDPIPE_WATCH_NODES
  value: {{ .Values.watchNodes | quote }}
- name: FEDPIPE_AGGREGATION_LIMIT
  value: {{ .Values.aggregationLimit | quote }}
- name: FEDPIPE_SCRATCH
  value: {{ .Values.scratch | quote }}
- name: FEDPIPE_JOB_TTL_SECONDS
  value: {{ .Values.jobTtlSeconds | int64 | quote }}
- name: FEDPIPE_PENDING_GRACE_SECONDS
  value: {{ .Values.pendingGraceSeconds | int64 | quote }}
- name: FEDPIPE_THREADS
  value: {{ .Values.threads | int64 | quote }}
- name: FEDPIPE_HEALTH_PORT
  value: {{ .Values.healthPort | int64 | quote }}
- name: FEDPIPE_LOG_FORMAT
  value: {{ .Values.logFormat | quote }}
{{- end }}
