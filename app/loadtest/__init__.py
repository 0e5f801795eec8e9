"""`sightline load`: simulates many clients of the live protocol, and checks whether the service meets objectives.

The load is open loop: each frame has a due time that does not depend on the service, and a result's age counts from
that time. A service that stalls therefore gets no smaller load, and no better figures, for it (coordinated omission).
"""
