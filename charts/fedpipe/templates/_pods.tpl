{{/* What the pods of the chart have in common: how they reach a store, and as whom they run. */}}

{{/* The pull Secrets of the values and of global, as a JSON list of their names; charts disagree about how global has them. */}}
{{- define "fedpipe.pullSecrets" -}}
{{- $names := list }}
{{- $all := .Values.global | default dict }}
{{- range concat (.Values.imagePullSecrets | default list) ($all.imagePullSecrets | default list) }}
{{- if kindIs "string" . }}{{ $names = append $names . }}{{ else }}{{ $names = append $names .name }}{{ end }}
{{- end }}
{{- uniq $names | toJson }}
{{- end }}

{{- define "fedpipe.imagePullSecrets" -}}
{{- with include "fedpipe.pullSecrets" . | fromJsonArray }}
imagePullSecrets:
{{- range . }}
  - name: {{ quote . }}
{{- end }}
{{- end }}
{{- end }}

{{/* How the pods of the operator and of `helm test` run and resolve names, and where they are placed: fields of a pod's spec. A test in
other circumstances than the operator's would tell of other things. */}}
{{- define "fedpipe.podFields" -}}
{{- with .Values.podSecurityContext }}
securityContext: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig: {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "fedpipe.imagePullSecrets" . }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ quote . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The ConfigMap with the certificates that are trusted: the chart's own for certificates in the values; empty: none. */}}
{{- define "fedpipe.caConfigMap" -}}
{{- with .Values.caBundle }}
{{- if and .pem .configMapName }}{{ fail (printf "caBundle.pem and caBundle.configMapName are both set: remove caBundle.pem to use the ConfigMap %s, or caBundle.configMapName to have the chart create one" .configMapName) }}{{ end }}
{{- if contains "PRIVATE KEY-----" (.pem | default "") }}{{ fail "caBundle.pem contains a private key: remove it, since every pod of a run can read this ConfigMap" }}{{ end }}
{{- with .pem }}{{ include "fedpipe.requireCertificates" . }}{{ end }}
{{- if .pem }}{{ include "fedpipe.clusterPart" (list $ "ca") }}{{ else }}{{ .configMapName | default "" }}{{ end }}
{{- end }}
{{- end }}

{{/* The setting caBundle of the operator, as JSON. */}}
{{- define "fedpipe.caBundle" -}}
{{ with .Values.caBundle }}{{ dict "configMapName" (include "fedpipe.caConfigMap" $) "key" .key | toJson }}{{ else }}{}{{ end }}
{{- end }}

{{/* The variables by which a pod of the chart finds certificates and proxy; those that extraEnv sets are left out. The API server is reached
without the proxy: the kubelet gives every container its address. */}}
{{- define "fedpipe.egressEnvironment" -}}
{{- $given := dict }}
{{- if include "fedpipe.caConfigMap" . }}
{{- range list "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" "AWS_CA_BUNDLE" }}{{ $_ := set $given . "/etc/fedpipe/ca/ca.crt" }}{{ end }}
{{- end }}
{{- with .Values.proxy }}
{{- with .http }}{{ $_ := set $given "HTTP_PROXY" . }}{{ end }}
{{- with .https }}{{ $_ := set $given "HTTPS_PROXY" . }}{{ end }}
{{- if or .http .https }}{{ $_ := set $given "NO_PROXY" (prepend (compact (list .noProxy)) "$(KUBERNETES_SERVICE_HOST)" | join ",") }}{{ end }}
{{- end }}
{{- range .Values.extraEnv }}{{ $_ := unset $given .name }}{{ end }}
{{- range $name, $value := $given }}
- name: {{ $name }}
  value: {{ quote $value }}
{{- end }}
{{- end }}

{{- define "fedpipe.caVolume" -}}
{{- with include "fedpipe.caConfigMap" . }}
- name: ca
  configMap:
    name: {{ quote . }}
    items: [{key: {{ $.Values.caBundle.key | quote }}, path: ca.crt}]
{{- end }}
{{- end }}

{{- define "fedpipe.caMount" -}}
{{- if include "fedpipe.caConfigMap" . }}
- name: ca
  mountPath: /etc/fedpipe/ca
  readOnly: true
{{- end }}
{{- end }}

{{/* The token with which the operator assumes the role of its store; empty: it has none. */}}
{{- define "fedpipe.identityVolume" -}}
{{- $identity := .Values.storeIdentity | default dict }}{{ $store := .Values.defaultStore | default dict }}
{{- if $identity.roleArn }}
{{- if not $store.bucket }}{{ fail "storeIdentity.roleArn is set, and defaultStore is not: set the store that it is for" }}{{ end }}
{{- if $store.credentialsSecretRef }}{{ fail "storeIdentity.roleArn and defaultStore.credentialsSecretRef are both set: remove one of the two" }}{{ end }}
- name: store-token
  projected:
    # The kubelet renews it when four fifths of its time have passed.
    sources: [{serviceAccountToken: {path: token, audience: {{ quote $identity.audience }}, expirationSeconds: 3600}}]
{{- else if and $store.bucket (not $store.credentialsSecretRef) }}
{{- fail "defaultStore has no credentialsSecretRef: set it to a Secret in each namespace with runs, or set storeIdentity.roleArn to a role of the operator" }}
{{- end }}
{{- end }}

{{- define "fedpipe.identityMount" -}}
{{- with .Values.storeIdentity }}{{ if .roleArn }}
- name: store-token
  mountPath: /var/run/secrets/fedpipe.io/store
  readOnly: true
{{- end }}{{ end }}
{{- end }}

{{/* Whether `helm test` opens the default store by the operator's identity; else empty. */}}
{{- define "fedpipe.testHasIdentity" -}}
{{- if and (dig "roleArn" "" (.Values.storeIdentity | default dict)) (not (dig "bucket" "" (.Values.test.store | default dict))) }}true{{ end }}
{{- end }}

{{/* As whom the pod of `helm test` runs. A token is of its pod's own account, and a role trusts the operator's alone: with the identity, as that. */}}
{{- define "fedpipe.testServiceAccount" -}}
{{ ternary (include "fedpipe.serviceAccount" .) (include "fedpipe.test" .) (not (empty (include "fedpipe.testHasIdentity" .))) }}
{{- end }}

{{/* The store that `helm test` tries, as JSON; {}: none. That of the values; else the default one where it is opened without a Secret, or where its
Secret must exist in this namespace, as it is served by name. There in a folder of the runs' own, since they may be all that is opened, with a name
that no namespace has. */}}
{{- define "fedpipe.testStore" -}}
{{- $store := .Values.test.store | default dict }}
{{- if not $store.bucket }}
{{- $opened := or (include "fedpipe.testHasIdentity" .) (has .Release.Namespace (include "fedpipe.namespaces" . | fromJsonArray)) }}
{{- $store = ternary (.Values.defaultStore | default dict) dict (not (empty $opened)) }}
{{- if $store.bucket }}{{ $store = merge (dict "prefix" (printf "%s/_helm-test" (include "fedpipe.runsPrefix" .) | trimPrefix "/")) $store }}{{ end }}
{{- end }}
{{- toJson $store }}
{{- end }}

{{/* The certificate of the reports' server. */}}
{{- define "fedpipe.reportsVolume" -}}
{{- if and .Values.reports.enabled .Values.reports.tlsSecretName }}
- name: reports-tls
  secret:
    secretName: {{ .Values.reports.tlsSecretName | quote }}
{{- end }}
{{- end }}

{{- define "fedpipe.reportsMount" -}}
{{- if and .Values.reports.enabled .Values.reports.tlsSecretName }}
- name: reports-tls
  mountPath: /etc/fedpipe/reports-tls
  readOnly: true
{{- end }}
{{- end }}
