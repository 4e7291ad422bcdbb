"""The paper's claims as experiments: flag files, what is measured, and the scoreboard."""
