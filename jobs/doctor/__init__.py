"""`evenhand doctor`: tries what a job will need, and says in one table what is wrong and how to mend it."""
