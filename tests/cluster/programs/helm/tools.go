//go:build tools

// Package programs names the command that tests/cluster builds from this module.
package programs

import _ "helm.sh/helm/v4/cmd/helm"
