"""The fault lab: a real agent between real brokers, asked by an independent client while everything around it fails.

    questions, schedule, account, figures    pure: what is asked, what fails and when, what became of each request
    tap                                      in front of the local broker: faults and the audit, as the gateway has them
    asker                                    the independent client (paho), one a link
    world                                    brokers, agent, disk and clock, and the faults put on them
    lab                                      the runs: against a schedule, offline and online, for hours
    report                                   what is printed

No part of it is a fixture: tests and `scripts/soak` use the same.
"""
