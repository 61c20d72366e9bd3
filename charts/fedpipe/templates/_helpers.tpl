{{/* The names of all objects are defined here and nowhere else. */}}

{{- define "fedpipe.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Name of the namespaced objects: the release's. */}}
{{- define "fedpipe.fullname" -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name (include "fedpipe.name" .)) (contains (include "fedpipe.name" .) .Release.Name) }}
{{- .Values.fullnameOverride | default $both | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* Name of the cluster-scoped objects: unique among the releases of all namespaces. */}}
{{- define "fedpipe.clusterName" -}}
{{ printf "%s-%s" .Release.Namespace (include "fedpipe.fullname" .) }}
{{- end }}

{{- define "fedpipe.nodeReader" -}}
{{ include "fedpipe.clusterName" . }}-nodes
{{- end }}

{{- define "fedpipe.policyGuard" -}}
{{ include "fedpipe.clusterName" . }}-site-policies
{{- end }}

{{- define "fedpipe.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "fedpipe.fullname" .) }}
{{- end }}

{{/* Image reference by digest, or by tag if there is none. Arguments: the chart's context, the image's values. */}}
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

{{/* The subjects of a role binding: the operator's service account. */}}
{{- define "fedpipe.subjects" -}}
- kind: ServiceAccount
  name: {{ include "fedpipe.serviceAccount" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{/* Each setting of the operator as its environment variable. */}}
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
- name: FEDPIPE_AGGREGATION_JOB_THRESHOLD
  value: {{ .Values.aggregationJobThreshold | quote }}
- name: FEDPIPE_SCRATCH
  value: {{ .Values.scratch | quote }}
- name: FEDPIPE_JOB_TTL_SECONDS
  value: {{ .Values.jobTtlSeconds | int64 | quote }}
- name: FEDPIPE_PENDING_GRACE_SECONDS
  value: {{ .Values.pendingGraceSeconds | int64 | quote }}
- name: FEDPIPE_MAX_CONCURRENT_RECONCILES
  value: {{ .Values.maxConcurrentReconciles | int64 | quote }}
- name: FEDPIPE_PRIORITY_CLASSES
  value: {{ join "," .Values.priorityClasses | quote }}
- name: FEDPIPE_STORE_POLICY
  value: {{ .Values.storePolicy | toJson | quote }}
- name: FEDPIPE_HEALTH_PORT
  value: {{ .Values.healthPort | int64 | quote }}
- name: FEDPIPE_LOG_FORMAT
  value: {{ .Values.logFormat | quote }}
{{- end }}
