package interleave

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// errSchedule means that a schedule does not fit the scenario.
var errSchedule = errors.New("interleave: the schedule does not fit this scenario")

// schedule encodes steps as letters, each for a task, followed by how many steps that
// task goes.
func schedule(steps []step) string {
	var b strings.Builder
	for i := 0; i < len(steps); {
		j := i
		for j < len(steps) && steps[j].task == steps[i].task {
			j++
		}
		fmt.Fprintf(&b, "%c%d", 'a'+steps[i].task, j-i)
		i = j
	}
	return b.String()
}

// parseSchedule decodes what schedule wrote, into the number of each step's task.
func parseSchedule(s string) ([]uint8, error) {
	var out []uint8
	for rest := s; rest != ""; {
		task := rest[0] - 'a'
		end := 1
		for end < len(rest) && '0' <= rest[end] && rest[end] <= '9' {
			end++
		}
		n, err := strconv.Atoi(rest[1:end])
		if err != nil || task >= maxTasks || n < 1 || len(out)+n > maxSteps {
			return nil, fmt.Errorf("schedule %q: want letters a to %c, each with a number of steps, %d at most in all", s, 'a'+maxTasks-1, maxSteps)
		}
		for range n {
			out = append(out, task)
		}
		rest = rest[end:]
	}
	return out, nil
}

// A follower follows a schedule to its end and preempts nobody afterwards.
type follower struct{ left []uint8 }

func (f *follower) pick(enabled uint16, current int) (int, error) {
	if len(f.left) == 0 {
		return unhurried(enabled, current), nil
	}
	i := int(f.left[0])
	f.left = f.left[1:]
	if enabled&(1<<i) == 0 {
		return 0, fmt.Errorf("%w: task %c cannot go on after %d steps from its end", errSchedule, 'a'+i, len(f.left))
	}
	return i, nil
}

// story describes a run, with one line for each stretch of steps of the same task.
func (r *Run) story() string {
	var b strings.Builder
	for i := 0; i < len(r.steps); {
		s := r.steps[i]
		fmt.Fprintf(&b, "  %c %s:", 'a'+s.task, r.tasks[s.task].name)
		for ; i < len(r.steps) && r.steps[i].task == s.task; i++ {
			fmt.Fprintf(&b, " | %s", r.steps[i].point)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
