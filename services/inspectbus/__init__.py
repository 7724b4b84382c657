"""InspectBus: visual inspection of manufactured parts."""
