"""One device's steps: objective, criterion, optimizer, and how a stopped training resumes."""
