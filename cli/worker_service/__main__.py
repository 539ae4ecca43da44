"""`python -m cli.worker_service` is worker-service. Process entry only."""

from cli.worker_service.main import main

main()
