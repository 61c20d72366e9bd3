{{/* The names of all objects are defined here and nowhere else. Where one is used it is quoted: 42 and no are legal names, and no texts in YAML. */}}

{{- define "fedpipe.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 40 | trimAll "-" }}
{{- end }}

{{/* Name of the namespaced objects: the release's, without dots, which a release's name may have and a Service's may not. */}}
{{- define "fedpipe.fullname" -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name (include "fedpipe.name" .)) (contains (include "fedpipe.name" .) .Release.Name) }}
{{- .Values.fullnameOverride | default $both | replace "." "-" | trunc 50 | trimAll "-" }}
{{- end }}

{{/* Name of what lies outside the release's namespace: unique among the releases of all namespaces, since neither part has a dot. What is added
to it begins with one, too. */}}
{{- define "fedpipe.clusterName" -}}
{{ printf "%s.%s" .Release.Namespace (include "fedpipe.fullname" .) }}
{{- end }}

{{/* Arguments: the chart's context, what is added. */}}
{{- define "fedpipe.clusterPart" -}}
{{ printf "%s.%s" (include "fedpipe.clusterName" (index . 0)) (index . 1) }}
{{- end }}

{{- define "fedpipe.nodeReader" -}}
{{ include "fedpipe.clusterPart" (list . "nodes") }}
{{- end }}

{{- define "fedpipe.leaseRole" -}}
{{ include "fedpipe.fullname" . }}-lease
{{- end }}

{{- define "fedpipe.policyGuard" -}}
{{ include "fedpipe.clusterPart" (list . "site-policies") }}
{{- end }}

{{- define "fedpipe.storeGuard" -}}
{{ include "fedpipe.clusterPart" (list . "run-stores") }}
{{- end }}

{{- define "fedpipe.metricsService" -}}
{{ include "fedpipe.serviceStem" . }}-metrics
{{- end }}

{{- define "fedpipe.reports" -}}
{{ include "fedpipe.serviceStem" . }}-reports
{{- end }}

{{/* How the name of a Service begins: with a letter, which a release's name need not. */}}
{{- define "fedpipe.serviceStem" -}}
{{ if regexMatch "^[0-9]" (include "fedpipe.fullname" .) }}n-{{ end }}{{ include "fedpipe.fullname" . }}
{{- end }}

{{- define "fedpipe.reviewer" -}}
{{ include "fedpipe.clusterPart" (list . "reviews") }}
{{- end }}

{{- define "fedpipe.test" -}}
{{ include "fedpipe.fullname" . }}-test
{{- end }}

{{- define "fedpipe.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "fedpipe.fullname" .) }}
{{- end }}

{{/* The namespaces that are served, as a JSON list; empty: all of the cluster. */}}
{{- define "fedpipe.namespaces" -}}
{{- if eq .Values.rbac.scope "cluster" }}[]{{ else }}{{ .Values.namespaces | default (list .Release.Namespace) | toJson }}{{ end }}
{{- end }}

{{/* Refuses to install a second operator of the same class for a namespace: both would act for the same runs. Only a Helm that is connected to
     a cluster sees other releases, and it looks only where it writes itself. */}}
{{- define "fedpipe.requireNoOtherRelease" -}}
{{- $bindings := list }}{{ $class := .Values.operatorClass | default "" }}
{{- range include "fedpipe.namespaces" . | fromJsonArray }}
{{- $bindings = concat $bindings (lookup "rbac.authorization.k8s.io/v1" "RoleBinding" . "" | dig "items" list) }}
{{- end }}
{{- if eq .Values.rbac.scope "cluster" }}
{{- $bindings = concat $bindings (lookup "rbac.authorization.k8s.io/v1" "RoleBinding" "" "" | dig "items" list) }}
{{- end }}
{{- if or (eq .Values.rbac.scope "cluster") .Values.watchNodes }}
{{- $bindings = concat $bindings (lookup "rbac.authorization.k8s.io/v1" "ClusterRoleBinding" "" "" | dig "items" list) }}
{{- end }}
{{- range $bindings }}
{{- $labels := .metadata.labels | default dict }}{{ $annotations := .metadata.annotations | default dict }}
{{- $release := printf "%s/%s" (get $annotations "meta.helm.sh/release-namespace") (get $annotations "meta.helm.sh/release-name") }}
{{- $is_other := ne $release (printf "%s/%s" $.Release.Namespace $.Release.Name) }}
{{- if and $is_other (hasKey $labels "fedpipe.io/operator-class") (eq (get $labels "fedpipe.io/operator-class") $class) }}
{{- fail (printf "the release %s serves %s with the same operatorClass %q: serve other namespaces, or set another operatorClass" $release (.metadata.namespace | default "all namespaces") $class) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Labels of a binding that lets the operator serve namespaces. */}}
{{- define "fedpipe.servingLabels" -}}
{{ set (include "fedpipe.labels" . | fromYaml) "fedpipe.io/operator-class" (.Values.operatorClass | default "") | toYaml }}
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
{{- range include "fedpipe.foundApiServer" . | fromJsonArray }}{{ $found = append $found (include "fedpipe.cidr" .address) }}{{ end }}
{{- end }}
{{- if not $found }}{{ fail "networkPolicy.apiServerCIDRs is empty, and Helm is not connected to a cluster that it could ask for the API server's addresses (helm template, a dry run of the client, a GitOps tool): set it to those of `kubectl get service,endpointslices kubernetes -n default -o wide`, such as [10.96.0.1/32, 192.0.2.10/32]; or set networkPolicy.enabled to false, and nothing limits where trainers connect to" }}{{ end }}
{{- uniq $found | toJson }}
{{- end }}

{{/* What Helm finds of it in the cluster, as a JSON list of objects: the address, and the port of an endpoint's. */}}
{{- define "fedpipe.foundApiServer" -}}
{{- $found := list }}
{{- range lookup "v1" "Service" "default" "kubernetes" | dig "spec" "clusterIPs" list }}{{ $found = append $found (dict "address" .) }}{{ end }}
{{- $slice := lookup "discovery.k8s.io/v1" "EndpointSlice" "default" "kubernetes" }}{{ $ports := dig "ports" list $slice }}
{{- range dig "endpoints" list $slice }}{{ range $address := .addresses }}
{{- range $ports }}{{ $found = append $found (dict "address" $address "port" .port) }}{{ else }}{{ $found = append $found (dict "address" $address) }}{{ end }}
{{- end }}{{ end }}
{{- toJson $found }}
{{- end }}

{{/* Where the operator connects to for no run, as it reads it: the CIDRs of the values, with every port, else what Helm finds. An endpoint's address
is a node's, where a store may listen on another port. Where no policy needs them, Helm asks only who may create what is of the whole cluster: others
may not read the namespace default, which would fail. Sorted, so that no other order of endpoints is another pod. */}}
{{- define "fedpipe.refusedApiServers" -}}
{{- $refused := .Values.networkPolicy.apiServerCIDRs | default list }}
{{- if and (not $refused) (or .Values.networkPolicy.enabled .Values.watchNodes (eq .Values.rbac.scope "cluster")) }}
{{- range include "fedpipe.foundApiServer" . | fromJsonArray }}
{{- $refused = append $refused (ternary (printf "%s:%v" (ternary (printf "[%s]" .address) .address (contains ":" .address)) .port) .address (not (empty .port))) }}
{{- end }}
{{- end }}
{{- uniq $refused | sortAlpha | join "," }}
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

{{/* Where the operator may connect to: there, and to the API server, as no pod of a Job may. */}}
{{- define "fedpipe.operatorEgress" -}}
{{- include "fedpipe.egress" . }}
- to:
    {{- range include "fedpipe.apiServer" . | fromJsonArray }}
    - ipBlock: {cidr: {{ quote . }}}
    {{- end }}
{{- end }}

{{/* Image reference by digest, or by tag if there is none. Arguments: the chart's context, the image's values. */}}
{{- define "fedpipe.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 }}{{ $repository := include "fedpipe.repository" . }}
{{- if $image.digest }}{{ $repository }}@{{ $image.digest }}
{{- else }}{{ $repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The image's repository, in the registry of global.imageRegistry if that is set. As container tools read a name, its first part is a registry
if there is a dot or a colon in it, or if it is localhost. */}}
{{- define "fedpipe.repository" -}}
{{- $repository := (index . 1).repository }}
{{- with dig "imageRegistry" "" ((index . 0).Values.global | default dict) }}
{{- $first := splitList "/" $repository | first }}
{{- if and (contains "/" $repository) (or (contains "." $first) (contains ":" $first) (eq $first "localhost")) }}{{ $repository = trimPrefix (printf "%s/" $first) $repository }}{{ end }}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) $repository }}
{{- end }}
{{- $repository }}
{{- end }}

{{- define "fedpipe.selector" -}}
app.kubernetes.io/name: {{ include "fedpipe.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "fedpipe.labels" -}}
{{ include "fedpipe.labelsAnd" (list . dict) }}
{{- end }}

{{/* These and others, of the kind of object: the chart's own labels win over them, and they over commonLabels. Arguments: the chart's context,
the others. */}}
{{- define "fedpipe.labelsAnd" -}}
{{- $root := index . 0 }}
{{- merge (include "fedpipe.ownLabels" $root | fromYaml) (index . 1 | default dict) ($root.Values.commonLabels | default dict) | toYaml }}
{{- end }}

{{- define "fedpipe.ownLabels" -}}
{{ include "fedpipe.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{/* Of what `helm test` creates: no selector of the operator's pod may match it. */}}
{{- define "fedpipe.testSelector" -}}
{{ set (include "fedpipe.selector" . | fromYaml) "app.kubernetes.io/component" "test" | toYaml }}
{{- end }}

{{- define "fedpipe.testLabels" -}}
{{ mergeOverwrite (include "fedpipe.labels" . | fromYaml) (include "fedpipe.testSelector" . | fromYaml) | toYaml }}
{{- end }}

{{/* Below which folder of the default store's bucket runs are; empty: of all of it. */}}
{{- define "fedpipe.runsPrefix" -}}
{{ dig "prefix" "fedpipe" (.Values.defaultStore | default dict) | trimSuffix "/" }}
{{- end }}

{{/* The subjects of a role binding: the operator's service account. */}}
{{- define "fedpipe.subjects" -}}
- kind: ServiceAccount
  name: {{ include "fedpipe.serviceAccount" . | quote }}
  namespace: {{ .Release.Namespace | quote }}
{{- end }}

{{/* A value as JSON without what is null in it: by null, Helm's users say that something is not given. */}}
{{- define "fedpipe.json" -}}
{{- if kindIs "map" . }}
{{- $given := dict }}
{{- range $name, $one := . }}{{ if not (kindIs "invalid" $one) }}{{ $_ := set $given $name (include "fedpipe.json" $one | printf "[%s]" | fromJsonArray | first) }}{{ end }}{{ end }}
{{- toJson $given }}
{{- else if kindIs "slice" . }}
{{- $given := list }}
{{- range . }}{{ if not (kindIs "invalid" .) }}{{ $given = append $given (include "fedpipe.json" . | printf "[%s]" | fromJsonArray | first) }}{{ end }}{{ end }}
{{- toJson $given }}
{{- else }}{{ toJson . }}
{{- end }}
{{- end }}

{{/* Each setting of the operator as its environment variable. */}}
{{- define "fedpipe.environment" -}}
- name: FEDPIPE_OPERATOR_IMAGE
  value: {{ include "fedpipe.image" (list . .Values.operatorImage) | quote }}
- name: FEDPIPE_TRAINER_IMAGE
  value: {{ include "fedpipe.image" (list . .Values.trainerImage) | quote }}
- name: FEDPIPE_IMAGE_PULL_POLICY
  value: {{ .Values.imagePullPolicy | quote }}
- name: FEDPIPE_IMAGE_PULL_SECRETS
  value: {{ include "fedpipe.pullSecrets" . | fromJsonArray | join "," | quote }}
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
- name: FEDPIPE_OPERATOR_CLASS
  value: {{ .Values.operatorClass | default "" | quote }}
- name: FEDPIPE_DEFAULT_STORE
  value: {{ include "fedpipe.json" (.Values.defaultStore | default dict) | quote }}
- name: FEDPIPE_STORE_IDENTITY
  value: {{ include "fedpipe.json" (.Values.storeIdentity | default dict) | quote }}
- name: FEDPIPE_STORE_POLICY
  value: {{ include "fedpipe.json" (.Values.storePolicy | default dict) | quote }}
- name: FEDPIPE_CA_BUNDLE
  value: {{ include "fedpipe.caBundle" . | quote }}
- name: FEDPIPE_PROXY
  value: {{ include "fedpipe.json" (.Values.proxy | default dict) | quote }}
- name: FEDPIPE_HUGGING_FACE_ENDPOINT
  value: {{ .Values.huggingFaceEndpoint | default "" | quote }}
- name: FEDPIPE_HUGGING_FACE_TOKEN_SECRET_REF
  value: {{ include "fedpipe.json" (.Values.huggingFaceTokenSecretRef | default dict) | quote }}
- name: FEDPIPE_EXPORT_JOB
  value: {{ include "fedpipe.json" (.Values.exportJob | default dict) | quote }}
- name: FEDPIPE_AGGREGATION_JOB
  value: {{ include "fedpipe.json" (.Values.aggregationJob | default dict) | quote }}
- name: FEDPIPE_JOB_POD_SECURITY_CONTEXT
  value: {{ include "fedpipe.json" (.Values.jobPodSecurityContext | default dict) | quote }}
- name: FEDPIPE_HEALTH_PORT
  value: {{ .Values.healthPort | int64 | quote }}
- name: FEDPIPE_METRICS_PORT
  value: {{ .Values.metricsPort | int64 | quote }}
- name: FEDPIPE_REPORTS
  value: {{ dict "enabled" .Values.reports.enabled "port" (int64 .Values.reports.port) "audience" .Values.reports.audience "tlsSecretName" (.Values.reports.tlsSecretName | default "") | toJson | quote }}
- name: FEDPIPE_LOG_FORMAT
  value: {{ .Values.logFormat | quote }}
- name: FEDPIPE_TRACING_ENDPOINT
  value: {{ .Values.tracingEndpoint | default "" | quote }}
{{- end }}
