// Runs a task through the generated client: submits it, reads how it stands, submits it again and waits for its end,
// and prints the two answers to a submission and the record, as the client has understood them.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"taskmesh.invalid/generated_client/api"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(url string) error {
	ctx := context.Background()
	client, err := api.NewClientWithResponses(url)
	if err != nil {
		return err
	}
	var input api.TaskRequest_Input
	if err := input.FromTaskRequestInput0("hello"); err != nil {
		return err
	}
	request := api.TaskRequest{Input: input}
	key, wait := "go", "wait=30"
	accepted, err := client.SubmitTaskWithResponse(ctx, &api.SubmitTaskParams{IdempotencyKey: &key}, request)
	if err != nil {
		return err
	}
	if accepted.JSON202 == nil {
		return fmt.Errorf("submitted: %s %s", accepted.Status(), accepted.Body)
	}
	// The same bytes as what the other answer has: a client may have one type for both.
	var asRecord api.TaskRecord
	if err := json.Unmarshal(accepted.Body, &asRecord); err != nil {
		return err
	}
	ended, err := client.SubmitTaskWithResponse(ctx, &api.SubmitTaskParams{IdempotencyKey: &key, Prefer: &wait}, request)
	if err != nil {
		return err
	}
	if ended.JSON200 == nil {
		return fmt.Errorf("waited: %s %s", ended.Status(), ended.Body)
	}
	read, err := client.GetTaskWithResponse(ctx, accepted.JSON202.Id, nil)
	if err != nil {
		return err
	}
	if read.JSON200 == nil {
		return fmt.Errorf("read: %s %s", read.Status(), read.Body)
	}
	absent, err := client.GetTaskWithResponse(ctx, "nope", nil)
	if err != nil {
		return err
	}
	if absent.ApplicationproblemJSON404 == nil {
		return fmt.Errorf("read what is not there: %s %s", absent.Status(), absent.Body)
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"accepted": accepted.JSON202,
		"ended":    ended.JSON200,
		"read":     read.JSON200,
		"absent":   absent.ApplicationproblemJSON404.Code,
	})
}
