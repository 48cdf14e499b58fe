"""What `peft-flow up` starts and keeps alive: servers, workers, deployments; and processes for parts of a job."""
