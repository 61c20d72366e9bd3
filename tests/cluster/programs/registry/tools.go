//go:build tools

// Package programs names the command that tests/cluster builds from this module.
package programs

import _ "github.com/distribution/distribution/v3/cmd/registry"
