"""The scorer on Ray Serve: the same application, in several replicas behind an ingress.

    client --HTTP--> Ray's proxy --> ingress.py: key of the prompt --> one replica of scorer.py: quorum_server's own app
    affinity.py: body -> key      scaling.py: queued tokens -> replicas      application.py: all of it wired

Needs the extras `server` and `ray`. Knows no scoring: routes, limits, keys and errors are the server's.
"""
