"""`sightline load`: many clients of the live protocol at once, and whether the service kept its promises.

Open loop: a frame is due when it is due, whatever the service does, and its age counts from that moment. A service
that stalls is not asked less for it (coordinated omission).
"""
