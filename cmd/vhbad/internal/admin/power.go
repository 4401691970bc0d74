package admin

import (
	"net/http"

	"github.com/vhbad/vhbad/client"
)

// Power controls the power and the write caches of disks.
//
// Concurrency: any goroutine.
type Power interface {
	// CutPower returns when the disk has power again, or earlier with an error if the cut
	// has to wait too long for the disk's medium.
	CutPower(disk string, o client.PowerCutOptions) (client.PowerReport, error)
	Power(disk string) (client.Power, error)
}

func powerRoutes(p Power) []Route {
	return []Route{
		{
			Method: http.MethodPost, Path: "/v1/disks/{name}/power-cut", ID: "cutPower",
			Summary: "Cut the power of a disk",
			Detail: "The disk stops at once, each pending write survives or not as the policy and the seed decide, and after the time asked for " +
				"the disk has power again: the answer comes then. If the cut waits for a command in the disk's medium, or itself takes, longer " +
				"than 30 s, the answer is 503 and says so; the cut is made all the same, and the disk's power has its report. Disks without a " +
				"write cache have nothing to lose and are refused.",
			Problems: []int{http.StatusBadRequest, http.StatusNotFound, http.StatusConflict},
			Endpoint: call(func(r *http.Request, o client.PowerCutOptions) (client.PowerReport, error) {
				return p.CutPower(r.PathValue("name"), o)
			}),
		},
		{
			Method: http.MethodGet, Path: "/v1/disks/{name}/power", ID: "power",
			Summary:  "What waits in the write cache of a disk, and what its last power cuts did",
			Problems: []int{http.StatusNotFound, http.StatusConflict},
			Endpoint: call(func(r *http.Request, _ None) (client.Power, error) { return p.Power(r.PathValue("name")) }),
		},
	}
}
