"""How good the grader is: on labelled real answers, on hostile text, in verdicts a second."""
