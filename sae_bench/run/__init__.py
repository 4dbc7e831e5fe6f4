"""How do registrations become a report? Load, measure, judge, write."""
