// Package grafana holds the Grafana dashboards of vhbad as Go code, and writes them as the
// JSON that Grafana imports.
//
// Dashboards edited by hand drift apart: a panel lacks its unit, a matcher is forgotten. In
// Go each of these is said once. overview.go, adapter.go, power.go and runtime.go say what
// is on a dashboard; build.go turns that into panels; model.go has the types of Grafana's
// JSON.
//
//	go run ./internal/grafana/generate deploy/grafana
//
// writes deploy/grafana again. A test fails if the files there are not what this package
// generates.
//
// # Queries
//
// A query is written with three marks that build.go replaces:
//
//	<instance>  matchers of the chosen daemons:  job=~"$job", instance=~"$instance"
//	<export>    the same, and of the chosen exports
//	<rate>      $__rate_interval, the range that suits the step and the scrapes
//
// Two daemons may each have an export of the same name, so sums keep the instance.
package grafana
