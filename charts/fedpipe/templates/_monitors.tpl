{{/* What a ServiceMonitor and a PodMonitor have in common, and how the PrometheusRule selects what they scrape. */}}

{{/* The label `release` of everything that is scraped of this release. Names of releases are unique in their namespace alone. */}}
{{- define "fedpipe.releaseLabel" -}}
{{ printf "%s/%s" .Release.Namespace .Release.Name }}
{{- end }}

{{/* An expression about this release's series alone. Arguments: the chart's context, the expression. */}}
{{- define "fedpipe.ofRelease" -}}
{{- $braced := regexReplaceAll "(fedpipe_[a-z_]+)([^a-z_{]|$)" (index . 1) "${1}{}${2}" }}
{{- regexReplaceAll "(fedpipe_[a-z_]+){" $braced (printf "${1}{release=%q, " (include "fedpipe.releaseLabel" (index . 0))) | replace ", }" "}" }}
{{- end }}

{{/* Fails where a monitor could not be created, or nothing could be scraped. Arguments: the chart's context, the monitor's name in `metrics`. */}}
{{- define "fedpipe.requireMonitoring" -}}
{{- $root := index . 0 }}{{ $path := printf "metrics.%s.enabled" (index . 1) }}
{{- if not ($root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1") }}{{ fail (printf "%s is true, and the cluster has no monitoring.coreos.com/v1: install the Prometheus operator's CRDs first, or set it to false; where Helm is not connected to the cluster (helm template, a GitOps tool), pass --api-versions monitoring.coreos.com/v1" $path) }}{{ end }}
{{- if and $root.Values.networkPolicy.enabled (not $root.Values.networkPolicy.metricsFrom) }}{{ fail (printf "%s is true, and networkPolicy.metricsFrom names no pod that may connect to the metrics: set it to Prometheus, such as [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]" $path) }}{{ end }}
{{- end }}

{{/* Labels and annotations. Arguments: the chart's context, the monitor's values. */}}
{{- define "fedpipe.monitorMetadata" -}}
{{- $root := index . 0 }}{{ $monitor := index . 1 -}}
labels: {{- include "fedpipe.labelsAnd" (list $root $monitor.labels) | nindent 2 }}
{{- with $monitor.annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What is scraped, and how. Arguments: the chart's context, the monitor's values. */}}
{{- define "fedpipe.monitorEndpoint" -}}
{{- $monitor := index . 1 -}}
port: metrics
path: /metrics
interval: {{ $monitor.interval | quote }}
scrapeTimeout: {{ $monitor.scrapeTimeout | quote }}
honorLabels: {{ $monitor.honorLabels }}
relabelings:
  - targetLabel: release
    replacement: {{ include "fedpipe.releaseLabel" (index . 0) | quote }}
  {{- with $monitor.relabelings }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $monitor.metricRelabelings }}
metricRelabelings: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
