<?php echo "generation ", getenv("GENERATION"), "\n";
