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

{{- define "fedpipe.storeGuard" -}}
{{ include "fedpipe.clusterName" . }}-run-stores
{{- end }}

{{- define "fedpipe.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "fedpipe.fullname" .) }}
{{- end }}

{{/* The namespaces that are served, as a JSON list; empty: all of the cluster. */}}
{{- define "fedpipe.namespaces" -}}
{{- if eq .Values.rbac.scope "cluster" }}[]{{ else }}{{ .Values.namespaces | default (list .Release.Namespace) | toJson }}{{ end }}
{{- end }}

{{/* Restricts the binding of an admission policy to the namespaces that are served. */}}
{{- define "fedpipe.inServedNamespaces" -}}
{{- with include "fedpipe.namespaces" . | fromJsonArray -}}
matchResources:
  namespaceSelector:
    matchExpressions:
      - {key: kubernetes.io/metadata.name, operator: In, values: {{ toJson . }}}
{{- end }}
{{- end }}

{{/* The addresses of the API server as a JSON list of CIDRs: those of the values, else those of its Service and of the endpoints behind it. */}}
{{- define "fedpipe.apiServer" -}}
{{- $found := .Values.networkPolicy.apiServerCIDRs }}
{{- if not $found }}
{{- range lookup "v1" "Service" "default" "kubernetes" | dig "spec" "clusterIPs" list }}{{ $found = append $found (include "fedpipe.cidr" .) }}{{ end }}
{{- range lookup "discovery.k8s.io/v1" "EndpointSlice" "default" "kubernetes" | dig "endpoints" list }}
{{- range .addresses }}{{ $found = append $found (include "fedpipe.cidr" .) }}{{ end }}
{{- end }}
{{- end }}
{{- if not $found }}{{ fail "networkPolicy.apiServerCIDRs is empty, and Helm is not connected to a cluster that it could ask for the API server's addresses (helm template, a dry run of the client, a GitOps tool): set it to those of `kubectl get service,endpointslices kubernetes -n default -o wide`, such as [10.96.0.1/32, 192.0.2.10/32]; or set networkPolicy.enabled to false, and nothing limits where trainers connect to" }}{{ end }}
{{- uniq $found | toJson }}
{{- end }}

{{- define "fedpipe.cidr" -}}
{{ . }}/{{ ternary 128 32 (contains ":" .) }}
{{- end }}

{{/* Where all our pods may connect to: name servers, and what networkPolicy.egress names, else any address but those that nothing should call. */}}
{{- define "fedpipe.egress" -}}
{{- toYaml .Values.networkPolicy.dns }}
{{- with .Values.networkPolicy.egress }}
{{ toYaml . }}
{{- else }}
{{- $refused := concat (.Files.Get "files/refused-addresses.yaml" | fromYamlArray) (include "fedpipe.apiServer" . | fromJsonArray) }}
{{- $four := list }}{{ $six := list }}
{{- range $refused }}{{ if contains ":" . }}{{ $six = append $six . }}{{ else }}{{ $four = append $four . }}{{ end }}{{ end }}
- to:
    - ipBlock: {cidr: 0.0.0.0/0, except: {{ toJson $four }}}
    - ipBlock: {cidr: "::/0", except: {{ toJson $six }}}
{{- end }}
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
  value: {{ include "fedpipe.namespaces" . | fromJsonArray | join "," | default "*" | quote }}
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
- name: FEDPIPE_METRICS_PORT
  value: {{ .Values.metricsPort | int64 | quote }}
- name: FEDPIPE_LOG_FORMAT
  value: {{ .Values.logFormat | quote }}
- name: FEDPIPE_TRACING_ENDPOINT
  value: {{ .Values.tracingEndpoint | quote }}
{{- end }}
