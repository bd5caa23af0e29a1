"""What tests share: a real broker, real processes, a recording client, and the offline checker."""
