// Command generate writes the dashboards of package grafana into a folder.
package main
