//go:build tools

// Package programs names the command that tests/cluster builds from this module.
package programs

import _ "sigs.k8s.io/kueue/cmd/kueue"
