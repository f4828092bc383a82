// For `azd up` and for `az deployment group create --parameters infra/main.bicepparam` alike. Values come from the environment,
// which azd fills from `azd env set`; what is not set takes the default beside it. Each name is RUNNERPOOL_ and the parameter's.

using './main.bicep'

var prefix = readEnvironmentVariable('RUNNERPOOL_NAME_PREFIX', 'hw')

param location = readEnvironmentVariable('AZURE_LOCATION', 'westus')
param environmentName = readEnvironmentVariable('AZURE_ENV_NAME', 'runnerpool')
param operatorPrincipalId = readEnvironmentVariable('AZURE_PRINCIPAL_ID', '')
param operatorPrincipalType = readEnvironmentVariable('AZURE_PRINCIPAL_TYPE', 'User')

param namePrefix = prefix
param tags = json(readEnvironmentVariable('RUNNERPOOL_TAGS', '{}'))
param profile = readEnvironmentVariable('RUNNERPOOL_PROFILE', 'frugal')
param instanceMemoryMB = int(readEnvironmentVariable('RUNNERPOOL_INSTANCE_MEMORY_MB', '0'))
param perInstanceConcurrency = int(readEnvironmentVariable('RUNNERPOOL_PER_INSTANCE_CONCURRENCY', '0'))
param alwaysReady = json(readEnvironmentVariable('RUNNERPOOL_ALWAYS_READY', '[]'))
param maximumInstanceCount = int(readEnvironmentVariable('RUNNERPOOL_MAXIMUM_INSTANCE_COUNT', '40'))
param pythonVersion = readEnvironmentVariable('RUNNERPOOL_PYTHON_VERSION', '3.13')
param siteUpdateStrategy = readEnvironmentVariable('RUNNERPOOL_SITE_UPDATE_STRATEGY', 'Recreate')

param createVirtualNetwork = bool(readEnvironmentVariable('RUNNERPOOL_CREATE_VIRTUAL_NETWORK', 'true'))
param createSubnets = bool(readEnvironmentVariable('RUNNERPOOL_CREATE_SUBNETS', 'true'))
param createSecurityGroup = bool(readEnvironmentVariable('RUNNERPOOL_CREATE_SECURITY_GROUP', 'true'))
param createNatGateway = bool(readEnvironmentVariable('RUNNERPOOL_CREATE_NAT_GATEWAY', 'true'))
param virtualNetworkName = readEnvironmentVariable('RUNNERPOOL_VIRTUAL_NETWORK_NAME', '${prefix}-vnet')
param runnerSubnetName = readEnvironmentVariable('RUNNERPOOL_RUNNER_SUBNET_NAME', '${prefix}-subnet')
param functionSubnetName = readEnvironmentVariable('RUNNERPOOL_FUNCTION_SUBNET_NAME', '${prefix}-functions')
param securityGroupName = readEnvironmentVariable('RUNNERPOOL_SECURITY_GROUP_NAME', '${prefix}-nsg')
param addressPrefix = readEnvironmentVariable('RUNNERPOOL_ADDRESS_PREFIX', '10.20.0.0/16')
param runnerSubnetPrefix = readEnvironmentVariable('RUNNERPOOL_RUNNER_SUBNET_PREFIX', '10.20.0.0/20')
param functionSubnetPrefix = readEnvironmentVariable('RUNNERPOOL_FUNCTION_SUBNET_PREFIX', '10.20.16.0/26')
param outboundPorts = json(readEnvironmentVariable('RUNNERPOOL_OUTBOUND_PORTS', '["443", "80"]'))
param dnsServers = json(readEnvironmentVariable('RUNNERPOOL_DNS_SERVERS', '[]'))
param securityRules = json(readEnvironmentVariable('RUNNERPOOL_SECURITY_RULES', '[]'))

param customRoles = bool(readEnvironmentVariable('RUNNERPOOL_CUSTOM_ROLES', 'true'))
param servicePrincipalClientId = readEnvironmentVariable('RUNNERPOOL_SERVICE_PRINCIPAL_CLIENT_ID', '')
param servicePrincipalObjectId = readEnvironmentVariable('RUNNERPOOL_SERVICE_PRINCIPAL_OBJECT_ID', '')
param servicePrincipalSecret = readEnvironmentVariable('RUNNERPOOL_SERVICE_PRINCIPAL_SECRET', '')

param poolConfig = readEnvironmentVariable('RUNNERPOOL_POOL_CONFIG', 'pool-config.yaml')
param githubApiUrl = readEnvironmentVariable('RUNNERPOOL_GITHUB_API_URL', 'https://api.github.com')
param githubAppId = readEnvironmentVariable('RUNNERPOOL_GITHUB_APP_ID', '')
param githubAppInstallationId = readEnvironmentVariable('RUNNERPOOL_GITHUB_APP_INSTALLATION_ID', '')
param smtpHost = readEnvironmentVariable('RUNNERPOOL_SMTP_HOST', '')
param smtpPort = int(readEnvironmentVariable('RUNNERPOOL_SMTP_PORT', '587'))
param smtpUsername = readEnvironmentVariable('RUNNERPOOL_SMTP_USERNAME', '')
param smtpStartTls = bool(readEnvironmentVariable('RUNNERPOOL_SMTP_START_TLS', 'true'))
param alertFrom = readEnvironmentVariable('RUNNERPOOL_ALERT_FROM', '')
param alertTo = readEnvironmentVariable('RUNNERPOOL_ALERT_TO', '')
param alertWebhook = bool(readEnvironmentVariable('RUNNERPOOL_ALERT_WEBHOOK', 'false'))
param rotating = json(readEnvironmentVariable('RUNNERPOOL_ROTATING', '[]'))
param purgeProtection = bool(readEnvironmentVariable('RUNNERPOOL_PURGE_PROTECTION', 'false'))

// Secrets: better set in the vault than here (docs/deploy.md). An empty one leaves what the vault holds.
param githubWebhookSecret = readEnvironmentVariable('RUNNERPOOL_GITHUB_WEBHOOK_SECRET', '')
param runnerStatusToken = readEnvironmentVariable('RUNNERPOOL_RUNNER_STATUS_TOKEN', '')
param runnerAgentKey = readEnvironmentVariable('RUNNERPOOL_RUNNER_AGENT_KEY', '')
param githubToken = readEnvironmentVariable('RUNNERPOOL_GITHUB_TOKEN', '')
param githubAppPrivateKey = readEnvironmentVariable('RUNNERPOOL_GITHUB_APP_PRIVATE_KEY', '')
param smtpPassword = readEnvironmentVariable('RUNNERPOOL_SMTP_PASSWORD', '')
param alertWebhookUrl = readEnvironmentVariable('RUNNERPOOL_ALERT_WEBHOOK_URL', '')
