{{/* What the schema cannot say about values: each refusal is a sentence. Where Helm is not connected to a cluster, these hold as well. */}}

{{- define "fedpipe.requireConsistentValues" -}}
{{- include "fedpipe.requireOwnPorts" . }}
{{- include "fedpipe.requireOwnModels" . }}
{{- include "fedpipe.requireWholePod" . }}
{{- include "fedpipe.requireOneMonitor" . }}
{{- end }}

{{/* The operator listens on each of its ports. */}}
{{- define "fedpipe.requireOwnPorts" -}}
{{- $taken := dict }}
{{- $ports := list (list "healthPort" .Values.healthPort) (list "metricsPort" .Values.metricsPort) }}
{{- if .Values.reports.enabled }}{{ $ports = append $ports (list "reports.port" .Values.reports.port) }}{{ end }}
{{- range $ports }}
{{- $value := index . 0 }}{{ $port := index . 1 | int | toString }}
{{- with get $taken $port }}{{ fail (printf "%s and %s are both %s, and the operator listens on each: set one of them to another port" . $value $port) }}{{ end }}
{{- $_ := set $taken $port $value }}
{{- end }}
{{- end }}

{{/* No folder of models may hold runs, nor lie in theirs: every run can read it. As operator/fedpipe_operator/store_identity.py decides. */}}
{{- define "fedpipe.requireOwnModels" -}}
{{- $identity := .Values.storeIdentity | default dict }}{{ $store := .Values.defaultStore | default dict }}
{{- if and $identity.roleArn $store.bucket }}
{{- $runs := printf "%s/%s" $store.bucket (include "fedpipe.runsPrefix" .) | trimSuffix "/" }}
{{- range $identity.models }}
{{- $models := trimSuffix "/" . }}
{{- if or (hasPrefix (printf "%s/" $models) (printf "%s/" $runs)) (hasPrefix (printf "%s/" $runs) (printf "%s/" $models)) }}
{{- fail (printf "storeIdentity.models: %s has objects of runs (%s), which every run could read: keep models in another folder" . $runs) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* What is added to the operator's pod fits together, and does not cover what the chart mounts. */}}
{{- define "fedpipe.requireWholePod" -}}
{{- $volumes := dict "tmp" true }}
{{- range .Values.extraVolumes }}
{{- if hasKey $volumes .name }}{{ fail (printf "extraVolumes has two volumes named %s: rename one of them" .name) }}{{ end }}
{{- $_ := set $volumes .name true }}
{{- end }}
{{- $paths := dict "/tmp" true "/etc/fedpipe/ca" true "/etc/fedpipe/reports-tls" true "/var/run/secrets/fedpipe.io/store" true }}
{{- range .Values.extraVolumeMounts }}
{{- if not (hasKey $volumes .name) }}{{ fail (printf "extraVolumeMounts mounts %s, and extraVolumes has no volume of this name: add it, or correct the name" .name) }}{{ end }}
{{- $path := clean .mountPath }}
{{- if hasKey $paths $path }}{{ fail (printf "extraVolumeMounts mounts %s at %s, where another volume is mounted: choose another mountPath" .name $path) }}{{ end }}
{{- $_ := set $paths $path true }}
{{- end }}
{{- $variables := dict }}
{{- range .Values.extraEnv }}
{{- if hasKey $variables .name }}{{ fail (printf "extraEnv sets %s twice: remove one of the two" .name) }}{{ end }}
{{- $_ := set $variables .name true }}
{{- end }}
{{- end }}

{{- define "fedpipe.requireOneMonitor" -}}
{{- with .Values.metrics }}
{{- if and .serviceMonitor.enabled .podMonitor.enabled }}{{ fail "metrics.serviceMonitor.enabled and metrics.podMonitor.enabled are both true, and Prometheus would scrape each pod twice: set one of them to false" }}{{ end }}
{{- range $name, $monitor := pick . "serviceMonitor" "podMonitor" }}
{{- if and $monitor.enabled $monitor.interval $monitor.scrapeTimeout }}
{{- $interval := include "fedpipe.milliseconds" $monitor.interval | int64 }}{{ $timeout := include "fedpipe.milliseconds" $monitor.scrapeTimeout | int64 }}
{{- if or (eq $interval 0) (eq $timeout 0) }}{{ fail (printf "metrics.%s: interval and scrapeTimeout must be above 0" $name) }}{{ end }}
{{- if gt $timeout $interval }}{{ fail (printf "metrics.%s.scrapeTimeout %s is longer than its interval %s, which Prometheus refuses: shorten the one or lengthen the other" $name $monitor.scrapeTimeout $monitor.interval) }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A duration as Prometheus writes it, such as 1m30s. */}}
{{- define "fedpipe.milliseconds" -}}
{{- $all := 0 }}{{ $text := . }}
{{- range $unit, $factor := dict "y" 31536000000 "w" 604800000 "d" 86400000 "h" 3600000 "m" 60000 "s" 1000 "ms" 1 }}
{{- with regexFind (printf "[0-9]+%s([0-9]|$)" $unit) $text }}{{ $all = add $all (mul (regexFind "^[0-9]+" . | atoi) $factor) }}{{ end }}
{{- end }}
{{- $all }}
{{- end }}

{{/* Fails if these are no certificates in PEM format, as far as Helm can tell: the text of each block is base64, and what it encodes begins as
an X.509 certificate does (a sequence, in it a sequence that begins with the version or the serial number) and is as long as it says. What is
between the blocks is nobody's matter. No text of it is quoted. */}}
{{- define "fedpipe.requireCertificates" -}}
{{- $blocks := regexFindAll "-----BEGIN (X509 |TRUSTED )?CERTIFICATE-----[^-]*-----END (X509 |TRUSTED )?CERTIFICATE-----" . -1 }}
{{- $whole := "it must have at least one block from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----, with its line breaks (--set-file caBundle.pem=FILE); convert a DER file by `openssl x509 -inform der -in FILE`" }}
{{- if not $blocks }}{{ fail (printf "caBundle.pem is no certificate in PEM format: %s" $whole) }}{{ end }}
{{- $begun := regexFindAll "-----BEGIN (X509 |TRUSTED )?CERTIFICATE-----" . -1 | len }}
{{- if ne $begun (len $blocks) }}{{ fail (printf "caBundle.pem is cut short: %d certificates begin in it, and %d end" $begun (len $blocks)) }}{{ end }}
{{- range $index, $block := $blocks }}
{{- $der := regexReplaceAll "-----[^-]*-----|\\s" $block "" | b64dec }}
{{- $begin := printf "%x" (trunc 16 $der) }}
{{- $fits := false }}
{{- if regexMatch "^30(81..|82....|83......)30(81..|82....|83......)(a003020102|a003020101|a003020100|02)" $begin }}
{{- $size := int (sub (int (substr 2 4 $begin)) 80) }}
{{- $fits = le (int64 (printf "0x%s" (substr 4 (int (add 4 (mul 2 $size))) $begin))) (int64 (sub (len $der) (add 2 $size))) }}
{{- end }}
{{- if not $fits }}{{ fail (printf "caBundle.pem: the text of certificate %d of %d is none (X.509): it was cut, changed, or encodes something else; `openssl x509 -noout -text` says what it is" (add1 $index) (len $blocks)) }}{{ end }}
{{- end }}
{{- end }}
