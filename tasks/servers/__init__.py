"""What `peft-flow up` starts and keeps alive: Prefect, MLflow, the worker, deployments."""
